"""Find folders of images below the site's data root, and refuse everything outside it."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from services.site.errors import Refusal

MAX_ENTRIES = 1_000_000


def inside(root: Path, relative: str) -> Path:
    """Return the folder `relative` below `root`, after a check that it holds no symbolic link.

    Raises:
        Refusal: `path_escape` for an absolute path, `..`, or a symbolic link on the way or anywhere inside;
            `not_found` for no folder; `data_invalid` for one that cannot be read; `too_large` for one of more than
            `MAX_ENTRIES` files and folders.
    """
    parts = _parts(relative)
    try:
        folder = _descend(root, parts, relative)
        _refuse_links(folder, relative)
    except OSError as error:  # a name too long for the file system, a folder that may not be read
        raise Refusal("data_invalid", f"{relative}: cannot be read: {error.strerror}") from None
    return folder


MAX_LISTED = 1000
"""The most folders that `below` lists."""


def below(root: Path, relative: str) -> tuple[list[str], int, bool]:
    """Return the names of the folders in one, sorted, how many files lie in it, and whether there are more folders.

    Args:
        root: the data root.
        relative: path of the folder from there; empty: the data root itself.

    Raises:
        Refusal: as `inside`; links are left out here, not refused.
    """
    names: list[str] = []
    files = 0
    try:
        folder = _descend(root, _parts(relative), relative) if relative else root
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    names.append(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    files += 1
    except OSError as error:
        raise Refusal("data_invalid", f"{relative or 'the data root'}: cannot be read: {error.strerror}") from None
    readable = sorted(name for name in names if name.isprintable())
    return readable[:MAX_LISTED], files, len(readable) > MAX_LISTED


def _parts(relative: str) -> tuple[str, ...]:
    parts = PurePosixPath(relative).parts
    if not parts or relative.startswith("/") or ".." in parts or "\\" in relative or "\0" in relative:
        raise Refusal("path_escape", "path is relative to the data root, with / between folders and without ..")
    return parts


def _descend(root: Path, parts: tuple[str, ...], relative: str) -> Path:
    folder = root
    for part in parts:
        folder = folder / part
        if folder.is_symlink():
            raise Refusal("path_escape", f"{relative}: {part} is a symbolic link; mount or copy the folder instead")
    if not folder.is_dir():
        raise Refusal("not_found", f"{relative}: no such folder below the site's data root")
    return folder


def _refuse_links(folder: Path, relative: str) -> None:
    count, pending = 0, [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                count += 1
                if entry.is_symlink():
                    link = f"{relative}/{os.path.relpath(entry.path, folder)}"
                    raise Refusal("path_escape", f"{link} is a symbolic link; copy the file instead")
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
        if count > MAX_ENTRIES:
            raise Refusal("too_large", f"{relative} holds more than {MAX_ENTRIES} files; register its parts")
