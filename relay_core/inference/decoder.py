"""Decode what strangers send in processes of their own: each upload in a fork that has limits, and dies after it.

`python -m relay_core.inference.decoder` imports the readers once and then forks on demand, so that a fork costs
milliseconds. It is started with an environment without secrets; `isolation` holds its other end. A fork sees one upload.

The parts speak through sockets in messages of bytes: JSON, then the array or the file that it announces.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import socket
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from relay_core.errors import RelayError
from relay_core.inference.answers import answer
from relay_core.inference.isolation import MESSAGE, NO_MEMORY, send
from relay_core.inference.questions import Question


def serve(control: socket.socket) -> None:
    """Fork for each socket that comes, and end forks, until the other end closes."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MESSAGE, 1)
        if not message:
            return
        order = json.loads(message)
        if "end" in order:
            control.sendall(json.dumps({"status": _end(order["end"])}).encode())
            continue
        try:
            pid = os.fork()
        except OSError:  # no memory, or too many processes
            pid = -1
        if pid == 0:
            control.close()
            _work(descriptors[0], order)
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(json.dumps({"pid": pid}).encode())


def _end(pid: int) -> int:
    """Kill a fork, if it lives, and return how it ended: its exit code, or a signal's number as a negative one."""
    try:
        os.kill(pid, signal.SIGKILL)  # its number is not given away before `waitpid`
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except (ProcessLookupError, ChildProcessError):
        return 0


def _work(descriptor: int, limits: dict[str, Any]) -> None:
    """Answer one question in this fork, and leave."""
    code = 1
    try:
        with Connection(descriptor) as asker:
            confine(limits)
            _answer(asker)
            code = 0
    except (EOFError, BrokenPipeError):  # nobody waits for the answer
        code = 0
    except MemoryError:  # no memory may be left to say so
        code = NO_MEMORY
    finally:
        os._exit(code)


def confine(limits: dict[str, Any]) -> None:
    """Limit this process, for good.

    Args:
        limits: `memory` and `file` in bytes, `cpu` in seconds, `folder`, where temporary files go.
    """
    tempfile.tempdir = limits["folder"]
    grown = _address_space() + limits["memory"]
    for kind, value in (
        (resource.RLIMIT_AS, grown),
        (resource.RLIMIT_FSIZE, limits["file"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu"], limits["cpu"] + 5))  # SIGXCPU first, which says why
    with contextlib.suppress(OSError):  # where memory runs out, the kernel ends this process, not the API
        Path("/proc/self/oom_score_adj").write_text("1000")


def _address_space() -> int:
    """Bytes of address space that this process uses now."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0


def _answer(asker: Connection) -> None:
    question = Question.of(json.loads(asker.recv_bytes()))
    content = asker.recv_bytes()

    def run(images: npt.NDArray[Any], outputs: Sequence[str]) -> list[npt.NDArray[Any]]:
        send(asker, {"run": list(outputs), "shape": images.shape})
        asker.send_bytes(np.ascontiguousarray(images, np.float32).data)
        shapes = json.loads(asker.recv_bytes())
        return [np.frombuffer(asker.recv_bytes(), np.float32).reshape(shape) for shape in shapes]

    try:
        made = answer(content, question, run, lambda *size: send(asker, {"decoded": size}))
    except RelayError as error:
        send(asker, {"code": error.code, "message": str(error)})
    else:
        send(asker, {"media_type": made.media_type, "warnings": made.warnings})
        asker.send_bytes(made.body)


def _import_readers() -> None:
    """Import whatever a fork may need, so that none imports it again."""
    import highdicom  # noqa: F401
    import SimpleITK  # noqa: F401
    from PIL import Image

    from relay_core.imaging import masks, out_of_distribution, read_dicom, read_study  # noqa: F401

    Image.init()


def main() -> None:
    """Serve the socket that is this process's standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this
    os.chdir("/")
    _import_readers()
    gc.freeze()  # forks share what they do not touch
    with socket.socket(fileno=os.dup(0)) as control:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # no fork keeps an end of this socket
        control.sendall(b"{}")
        serve(control)


if __name__ == "__main__":
    main()
