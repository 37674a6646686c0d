"""File systems that can be filled up."""

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def small_volume(folder: Path, mib: int) -> Iterator[Path]:
    """A file system of its own in `folder`, in memory. Raises PermissionError where mounting is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "relay-test", str(folder)]
    allowed = os.geteuid() == 0 and shutil.which("mount") is not None
    if not allowed or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        raise PermissionError("mounting a small volume needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def vanished(folder: Path) -> Iterator[Path]:
    """Hide a mounted volume, as where its device was taken away: an empty folder is in its place."""
    with small_volume(folder, 1):
        yield folder


def fill(folder: Path) -> Path:
    """Leave no byte free on a small volume; return the file that takes the room."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2
    return ballast
