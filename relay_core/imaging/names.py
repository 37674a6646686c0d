"""Names of files: one Unicode form, and what operating systems leave behind."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath

_LITTER = frozenset({".ds_store", "thumbs.db", "desktop.ini", "dicomdir"})


def is_litter(name: str) -> bool:
    """Whether a file, by its name or its path in an archive, is an operating system's or an index, and no image."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.name.lower() in _LITTER or path.name.startswith("._") or "__MACOSX" in path.parts


def one_form(name: str) -> str:
    """A name in the composed Unicode form (NFC): macOS decomposes what others write composed."""
    return unicodedata.normalize("NFC", name)
