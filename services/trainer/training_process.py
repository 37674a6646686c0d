"""Run one training process in a process group of its own: read it line by line, and stop it for certain."""

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
"""Number of characters of a line that are kept; the result of a run of many sites is one long line."""
NOTE = "process.json"


class TrainingProcess:
    """Starts a process, which does not outlive this one, reads its lines, and ends it.

    Args:
        command: the command line to run.
        folder: the process's working folder; a note of the process is left in it, so that a later attempt can end the
            process where it still runs.
        environment: all environment variables of the process.
    """

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.lines: queue.Queue[tuple[str, str]] = queue.Queue(maxsize=10_000)
        """Lines that were read and not taken yet: (`out` or `err`, line)."""
        self.errors: deque[str] = deque(maxlen=200)
        """The last 200 lines of the process's standard error."""
        self._oom_before = _count_oom_kills()
        self._process = subprocess.Popen(
            guarded(command), cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        streams = (("out", self._process.stdout), ("err", self._process.stderr))
        self._readers = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in streams]
        try:
            for reader in self._readers:
                reader.start()
            note = {"host": platform.node(), "pid": self.pid, "started": _start_time(self.pid)}
            write_atomically(folder / NOTE, json.dumps(note).encode())
        except BaseException:  # a full disk, for one: without a note nobody could end it later
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Return the process id, which is the id of its process group too."""
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
        """Take up to 500 lines as (`out` or `err`, line), waiting up to `timeout` seconds for the first."""
        lines = []
        try:
            lines.append(self.lines.get(timeout=timeout) if timeout else self.lines.get_nowait())
            while len(lines) < 500:
                lines.append(self.lines.get_nowait())
        except queue.Empty:
            pass
        return lines

    @property
    def ended(self) -> bool:
        """Return whether the process has ended and every line was taken."""
        if self._process.poll() is None:
            return False
        if any(reader.is_alive() for reader in self._readers):
            _signal_group(self.pid, signal.SIGKILL)  # a child of the process holds its output open
            return False
        return self.lines.empty()

    @property
    def code(self) -> int:
        """Wait for the end; return the exit code, or minus the number of the signal that ended the process."""
        return self._process.wait()

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the group, which asks a training to write a checkpoint and leave."""
        _signal_group(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the whole process group with SIGKILL, and wait for the process."""
        _signal_group(self.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Kill the process and close its output; lines that were not taken are dropped."""
        self.kill()
        for reader in self._readers:
            while reader.is_alive():
                self.take(0)
                reader.join(0.05)

    @property
    def out_of_memory(self) -> bool:
        """Return whether a lack of memory ended the process, by its standard error or the kernel's count of such kills."""
        if any("out of memory" in line.lower() or "MemoryError" in line for line in self.errors):
            return True
        return self.code in (-signal.SIGKILL, 128 + signal.SIGKILL) and _count_oom_kills() > self._oom_before


def end_leftover(folder: Path) -> bool:
    """Kill the process that an earlier attempt left running in `folder` on this machine; return whether there was one."""
    try:
        note: dict[str, Any] = json.loads((folder / NOTE).read_text())
        pid = int(note["pid"])
    except (OSError, ValueError, KeyError):
        return False
    if note.get("host") != platform.node() or _start_time(pid) != note.get("started") or note.get("started") is None:
        return False
    _signal_group(pid, signal.SIGKILL)
    return True


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _start_time(pid: int) -> str | None:
    """Return the kernel's start time of a process, which together with the id names one process for certain."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _count_oom_kills() -> int:
    """Count how often the kernel ended a process of this control group, or of this machine, for lack of memory."""
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
        try:
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
        except (OSError, ValueError):
            continue
    return 0
