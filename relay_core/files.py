"""Atomic writes: a file is whole or not there, as it is written under another name, synced and renamed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path


def replace_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it, rename it to `path`; the folder is created.

    Whatever fails, `path` is what it was before, and nothing half-written stays.

    Raises:
        OSError: the folder is not writable, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing-{path.name}-{secrets.token_hex(4)}")
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write `content` with `replace_with`; `mode` is the permissions of a new file, as in `os.open`. Raises OSError."""

    def write(temporary: Path) -> None:
        temporary.touch(mode, exist_ok=False)
        temporary.write_bytes(content)

    replace_with(path, write)


def sync(path: Path) -> None:
    """Make a file's content, or the renames in a folder, durable. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lock a folder within the block: one process at a time has it, others wait."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
