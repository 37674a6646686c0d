"""Settings that lead out of the folders that a run is given: absolute paths, and paths with `..`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PureWindowsPath
from typing import Any

from relay_core.config.site import SiteSettings

PATHS = (
    "root_path",
    "dataset.kwargs.root_path",
    "dataset.kwargs.img_folder",
    "dataset.kwargs.image_dir",
    "dataset.kwargs.mask_dir",
    "dataset.kwargs.split_file",
    "model.kwargs.pretrain_file",
    "model.kwargs.solver_kwargs.pretrain_file",
    "checkpoint.load",
    "checkpoint.resume",
    "checkpoint.save.dir",
)
"""Settings of a site that name a file or a folder."""


def outside_paths(settings: SiteSettings) -> Iterator[tuple[str, str]]:
    """(key, value) of each path of a site that leads outside, by the rules of Windows or of any other system."""
    plain = settings.model_dump()
    for key in PATHS:
        value: Any = plain
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        for name, path in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(path, str) and _leads_outside(path):
                yield f"{key}.{name}" if name else key, path


def _leads_outside(path: str) -> bool:
    parts = PureWindowsPath(path)  # takes / and \ for separators
    return bool(parts.anchor) or ".." in parts.parts
