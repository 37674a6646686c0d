"""Find settings that lead out of the folders that a run is given: absolute paths, and paths with `..`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PureWindowsPath
from typing import Any

from relay_core.config.site import SiteSettings

WORDS = ("path", "folder", "dir", "file", "load", "resume")
"""The last word of the name of every setting that names a file or a folder, those of plug-ins too."""


def outside_paths(settings: SiteSettings) -> Iterator[tuple[str, str]]:
    """Yield (key, value) of each path of a site that leads outside, by the rules of Windows or of any other system."""
    yield from outside_values("", settings.model_dump())


def outside_values(key: str, value: Any, named: bool = False) -> Iterator[tuple[str, str]]:
    """Yield (key, value) of each path that leads outside in plain settings.

    Args:
        key: dotted key that `value` stands below; empty for the top.
        value: mapping, list or single value.
        named: whether `key` names a file or a folder.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            is_path = named or str(name).rpartition("_")[2] in WORDS
            yield from outside_values(f"{key}.{name}" if key else str(name), inner, is_path)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from outside_values(key, inner, named)
    elif named and isinstance(value, str) and _leads_outside(value):
        yield key, value


def _leads_outside(path: str) -> bool:
    windows_path = PureWindowsPath(path)  # takes / and \ for separators
    return bool(windows_path.anchor) or ".." in windows_path.parts
