"""One training process: started in a process group of its own, read line by line, stopped for certain."""

from __future__ import annotations

import json
import os
import platform
import queue
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from relay_core.files import write_atomically
from services.trainer.process_guard import guarded

MAX_LINE = 1 << 24
"""Characters of a line that are kept: the result of a run of many sites is one line."""
NOTE = "process.json"


class TrainingProcess:
    """A leashed process, its lines, and its end.

    Args:
        command: what to run.
        folder: where it runs; holds a note of the process, so that a later attempt can end what is left of it.
        environment: its variables.
    """

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.lines: queue.Queue[tuple[str, str]] = queue.Queue(maxsize=10_000)
        """(`out` or `err`, line)."""
        self.errors: deque[str] = deque(maxlen=200)
        """The last lines of its standard error."""
        self._oom_before = _oom_kills()
        self._process = subprocess.Popen(
            guarded(command), cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        streams = (("out", self._process.stdout), ("err", self._process.stderr))
        self._readers = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in streams]
        try:
            for reader in self._readers:
                reader.start()
            note = {"host": platform.node(), "pid": self.pid, "started": _started(self.pid)}
            write_atomically(folder / NOTE, json.dumps(note).encode())
        except BaseException:  # a full disk, for one: without a note nobody could end it later
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Process id, and the id of its group."""
        return self._process.pid

    def _read(self, name: str, stream: IO[str] | None) -> None:
        assert stream is not None
        with stream:
            for line in stream:
                text = line.rstrip("\n")[:MAX_LINE]
                if name == "err":
                    self.errors.append(text)
                self.lines.put((name, text))

    def take(self, timeout: float) -> list[tuple[str, str]]:
        """The lines at hand, waiting up to `timeout` seconds for the first."""
        taken = []
        try:
            taken.append(self.lines.get(timeout=timeout) if timeout else self.lines.get_nowait())
            while len(taken) < 500:
                taken.append(self.lines.get_nowait())
        except queue.Empty:
            pass
        return taken

    @property
    def ended(self) -> bool:
        """Whether it has left and every line was taken."""
        if self._process.poll() is None:
            return False
        if any(reader.is_alive() for reader in self._readers):
            _signal_group(self.pid, signal.SIGKILL)  # something that it started holds its output open
            return False
        return self.lines.empty()

    @property
    def code(self) -> int:
        """Exit code; negative: the signal that ended it."""
        return self._process.wait()

    def ask_to_stop(self) -> None:
        """SIGTERM: write a checkpoint and leave."""
        _signal_group(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the whole group, whatever it does."""
        _signal_group(self.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Kill it, and let go of its output; lines that were not taken are dropped."""
        self.kill()
        for reader in self._readers:
            while reader.is_alive():
                self.take(0)
                reader.join(0.05)

    @property
    def out_of_memory(self) -> bool:
        """Whether memory was what ended it: the kernel's count of such kills went up, or CUDA said so."""
        if any("out of memory" in line.lower() or "MemoryError" in line for line in self.errors):
            return True
        return self.code in (-signal.SIGKILL, 128 + signal.SIGKILL) and _oom_kills() > self._oom_before


def end_leftover(folder: Path) -> bool:
    """Kill what an earlier attempt left running in `folder` on this machine; return whether there was something."""
    try:
        note: dict[str, Any] = json.loads((folder / NOTE).read_text())
        pid = int(note["pid"])
    except (OSError, ValueError, KeyError):
        return False
    if note.get("host") != platform.node() or _started(pid) != note.get("started") or note.get("started") is None:
        return False
    _signal_group(pid, signal.SIGKILL)
    return True


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _started(pid: int) -> str | None:
    """The kernel's start time of a process: with the id it names one process for certain."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _oom_kills() -> int:
    """How often the kernel ended a process of this control group, or of this machine, for want of memory."""
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
        try:
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
        except (OSError, ValueError):
            continue
    return 0
