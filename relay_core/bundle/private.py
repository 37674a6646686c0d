"""Provides private folders for plaintext and other confidential files, which are deleted after use."""

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
    """Create a new folder below `parent` with mode 700 and delete it at the end of the block.

    Folders that a killed process left behind, perhaps with plaintext, are deleted first: nobody holds their locks any more.
    Raises OSError.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for stale in parent.glob(f"{_PREFIX}*"):
        with _lock(stale) as free:
            if free:
                shutil.rmtree(stale, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        with _lock(folder) as held:
            if held and folder.is_dir():  # otherwise another process deleted it as a leftover before it was locked
                try:
                    yield folder
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
                return


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock if it is free, and yield whether it is held.

    The kernel frees the lock even if this process is killed.
    """
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
