"""Run a command that the kernel kills when its parent dies: `python -m services.trainer.process_guard PARENT command...`.

The process itself asks the kernel for that, before it becomes the command: code between fork and exec is not safe in a
parent that has threads. PARENT is the process id of the parent, so that its earlier death is noticed; 0 skips that check.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int = 0) -> None:
    """Ask the kernel for SIGKILL at the parent's end; exit where `parent` has died already (elsewhere than Linux: no-op)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent and os.getppid() != parent:
        os._exit(1)


def guarded(command: Sequence[str]) -> list[str]:
    """Return a command line that runs `command` as a child of this process which does not outlive it."""
    return [sys.executable, "-m", "services.trainer.process_guard", str(os.getpid()), *command]


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
