"""Have uploads decoded by processes that may die of them: `decoder` is the other end.

What comes from a decoder is not trusted either: it is bytes whose number is known beforehand, and JSON, never pickles.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from relay_core.errors import DecoderError, ExportError, ImageError, ImageTooLargeError
from relay_core.inference.questions import SUFFIXES, Answer, Question
from relay_core.inference.resolution import ModelCall

MESSAGE = 1 << 20
"""Most bytes of a message of JSON."""
NO_MEMORY = 3
"""Exit code of a decoder whose memory ran out."""
MEMORY = 3072 << 20
"""Bytes that a decoder may use beyond what it starts with."""
FILE = 1 << 20
"""Bytes that a decoder may write to one temporary file beyond twice the upload's."""
SECONDS = 60.0
"""Seconds that decoding may take."""
PIXEL = 2e-6
"""Seconds more, for each pixel of a decoded study, to shrink it and to encode the answer, beside `SECONDS` again."""
PATIENCE = 30.0
"""Seconds that the server of decoders has to answer."""
BROKEN = "the image could not be decoded: the decoder broke off"
ANSWER = 1 << 30
"""Most bytes of an answer."""
BATCH = 32
"""Most slices in one call of the model."""
_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "TZ")
"""What a decoder gets of the environment: no settings of the service, which hold secrets."""


class Decoders:
    """Answers questions about uploads, each decoded in a process of its own with limits. Any thread may call it.

    Args:
        memory: bytes that one decoder may use.
        seconds: seconds of wall clock that decoding may take, and encoding; the network's time does not count.
    """

    def __init__(self, memory: int = MEMORY, seconds: float = SECONDS) -> None:
        self._memory, self._seconds, self._lock = memory, seconds, threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def answer(
        self, content: bytes, question: Question, run: ModelCall,
        decoded: Callable[[int, int, int], object] = lambda *size: None,
        progress: Callable[[int], object] = lambda slices: None,
    ) -> Answer:  # fmt: skip
        """Decode an upload and answer the question, as `answers.answer` does.

        Args:
            content: the bytes of the upload.
            question: what is wanted of which model.
            run: the model at its own resolution, which runs in this process.
            decoded: called with slices, rows and columns once they are known; what it raises ends the decoder.
            progress: called with the number of slices that the model has seen.

        Raises:
            ImageError: the upload cannot be used, or the decoder died of it.
            ImageTooLargeError: it took more memory or time than a decoder has.
        """
        with tempfile.TemporaryDirectory(prefix="relay-") as folder, self._decoder(folder, len(content)) as decoder:
            decoder.say(json.dumps(question.to_json()).encode())
            decoder.say(content)
            seen = size = 0
            while True:
                message = decoder.heard()
                if "decoded" in message and not size:
                    slices, rows, columns = _sizes(message["decoded"])
                    size = slices * rows * columns
                    decoder.seconds = self._seconds + size * PIXEL
                    decoded(slices, rows, columns)
                elif "run" in message:
                    images = decoder.images(message, question)
                    results = [np.ascontiguousarray(result, np.float32) for result in run(images, message["run"])]
                    decoder.say(json.dumps([result.shape for result in results]).encode())
                    for result in results:
                        decoder.say(result.data)
                    seen += len(images)
                    progress(seen)
                elif "media_type" in message:
                    if message["media_type"] not in SUFFIXES:
                        raise ImageError(BROKEN)
                    warnings = [str(text).replace("\r", " ").replace("\n", " ") for text in message.get("warnings", ())]
                    return Answer(decoder.hear(ANSWER), message["media_type"], tuple(warnings))
                else:
                    kinds = {kind.code: kind for kind in (ImageTooLargeError, ExportError)}
                    raise kinds.get(str(message.get("code")), ImageError)(str(message.get("message", BROKEN)))

    def start(self) -> None:
        """Start the server of decoders, so that the first caller does not wait for it."""
        with self._lock:
            self._alive()

    def close(self) -> None:
        """End the server; decoders that still work end with their connections."""
        with self._lock:
            self._stop()

    @contextmanager
    def _decoder(self, folder: str, size: int) -> Iterator[_Decoder]:
        ours, theirs = socket.socketpair()
        with ours:
            order = {
                "memory": self._memory, "cpu": max(1, int(self._seconds * 20)), "folder": folder,
                "file": 2 * size + FILE,
            }  # fmt: skip
            with theirs, self._lock:
                pid, server = self._fork(order, theirs.fileno())
            decoder = _Decoder(ours, self._memory, self._seconds, lambda: self._end(pid, server))
            try:
                yield decoder
            finally:
                decoder.close()

    def _end(self, pid: int, server: subprocess.Popen[bytes]) -> int:
        """End a decoder, and return how it ended; one whose server is gone ends with its connection."""
        with self._lock:
            if self._server is not server or server.poll() is not None:
                return 0
            return int((self._asked({"end": pid}) or {}).get("status", 0))

    def _fork(self, order: dict[str, Any], descriptor: int) -> tuple[int, subprocess.Popen[bytes]]:
        """Have a decoder forked that speaks through a socket; return its number and its server. Called with the lock."""
        for _ in range(2):
            server = self._alive()
            reply = self._asked(order, descriptor)
            if reply is not None and int(reply["pid"]) > 0:
                return int(reply["pid"]), server
            if reply is not None:
                break
        raise DecoderError("no process could be made to decode the image (memory, or too many processes); try again")

    def _alive(self) -> subprocess.Popen[bytes]:
        """Return the server, which is started where it does not live. Called with the lock."""
        if self._server is None or self._server.poll() is not None:
            self._stop()
            self._start()
        assert self._server is not None
        return self._server

    def _asked(self, order: dict[str, Any], descriptor: int | None = None) -> dict[str, Any] | None:
        """Send an order to the server, and return its answer; None: it died of it, or does not answer."""
        assert self._control is not None
        try:
            socket.send_fds(self._control, [json.dumps(order).encode()], [] if descriptor is None else [descriptor])
            if reply := self._control.recv(MESSAGE):
                return dict(json.loads(reply))
        except (OSError, ValueError):
            pass
        self._stop()
        return None

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
            threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            self._server = subprocess.Popen(
                [sys.executable, "-m", "relay_core.inference.decoder"], stdin=theirs.fileno(), stdout=subprocess.DEVNULL,
                env={**environment, **threads, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"},
                start_new_session=True,
            )  # fmt: skip
        self._control = ours
        ours.settimeout(PATIENCE * 2)  # it imports the readers
        try:
            started = ours.recv(MESSAGE)
        except OSError:
            started = b""
        if not started:
            self._stop()
            raise DecoderError("the process that decodes images could not be started; try again")
        ours.settimeout(PATIENCE)

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._server is not None:
            self._server.kill()
            self._server.wait()
        self._control = self._server = None


class _Decoder:
    """One decoder at work: what is said to it and heard of it, until its time is used up."""

    def __init__(self, ours: socket.socket, memory: int, seconds: float, end: Callable[[], int]) -> None:
        self._memory = memory
        self._socket, self._connection = ours, Connection(os.dup(ours.fileno()))
        self.seconds, self._end = seconds, end
        self._whole, self._late, self._lock = seconds, False, threading.Lock()
        self._status: int | None = None

    def say(self, content: Any) -> None:
        with self._in_time():
            self._connection.send_bytes(content)

    def heard(self) -> dict[str, Any]:
        """Return the next message of JSON."""
        try:
            message = json.loads(self.hear(MESSAGE))
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise ImageError(BROKEN)
        return message

    def hear(self, most: int) -> bytes:
        """Return the next bytes, at most so many."""
        with self._in_time():
            return self._connection.recv_bytes(most)

    def images(self, message: dict[str, Any], question: Question) -> Any:
        """Return the images that a message announces, after checking that they are what the network takes."""
        side, shape = question.resolution, message.get("shape", [])
        known = ["probabilities", "looks"] if question.task == "classification" else ["logits", "looks"]
        sound = isinstance(shape, list) and len(shape) == 4 and all(type(n) is int for n in shape)
        if (
            not sound
            or shape[1:] != [question.channels, side, side]
            or not 1 <= shape[0] <= BATCH
            or message["run"] != known
        ):
            raise ImageError(BROKEN)
        content = self.hear(4 * shape[0] * question.channels * side * side)
        return np.frombuffer(content, np.float32).reshape(shape)

    def close(self) -> None:
        """End it, and let go of the connection."""
        self._connection.close()
        self._socket.close()
        self._killed()

    def _killed(self) -> int:
        """End it where it lives, and return how it ended."""
        with self._lock:
            if self._status is None:
                self._status = self._end()
            return self._status

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Give it so many seconds for what is done in the block. Raises ImageError where it dies."""
        began, given = time.monotonic(), self.seconds
        timer = threading.Timer(given, self._too_late)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (EOFError, OSError):
            status = self._killed()
            if self._late or status == -signal.SIGXCPU:
                raise ImageTooLargeError(f"decoding the image takes more than {self._whole:g} seconds") from None
            if status == NO_MEMORY:
                raise ImageTooLargeError(f"decoding the image takes more than {self._memory >> 20} MiB") from None
            raise ImageError("the image could not be decoded: the decoder died of it (damaged, or too large)") from None
        finally:
            timer.cancel()
            self.seconds = max(given - (time.monotonic() - began), 0.001)

    def _too_late(self) -> None:
        self._late = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # whoever waits for it notices, whatever becomes of the server
        self._killed()


def _sizes(found: Any) -> tuple[int, int, int]:
    """Return slices, rows and columns as a decoder says them. Raises ImageError for anything else."""
    if not isinstance(found, list) or len(found) != 3 or not all(type(n) is int and 0 < n < 1 << 31 for n in found):
        raise ImageError(BROKEN)
    return found[0], found[1], found[2]


def send(to: Connection, message: dict[str, Any]) -> None:
    """Send a message of JSON."""
    to.send_bytes(json.dumps(message).encode())
