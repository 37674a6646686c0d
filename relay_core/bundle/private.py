"""A folder for what nobody else may see, and for no longer than it is needed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = ".private-"


@contextlib.contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """A new folder below `parent`, mode 700, gone in the end.

    What a process left there that was killed (plaintext, perhaps) goes first: its lock is free then. Raises OSError.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for stale in parent.glob(f"{_PREFIX}*"):
        with _lock(stale) as free:
            if free:
                shutil.rmtree(stale, ignore_errors=True)
    while True:
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        with _lock(made) as held:
            if held and made.is_dir():  # else somebody took it for a leftover before it was locked
                try:
                    yield made
                finally:
                    shutil.rmtree(made, ignore_errors=True)
                return


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock, if it is free; the kernel frees it whatever happens to this process."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)
