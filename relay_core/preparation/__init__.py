"""Volumes and their labels become the slices of a data set. Loads no torch, and nothing heavy before it is used."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from relay_core.preparation.run import REPORT, prepare
    from relay_core.preparation.selection import Selection
    from relay_core.preparation.slicing import Mediastinum, Slices
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        [],
        {
            "run": ["REPORT", "prepare"],
            "selection": ["Selection"],
            "slicing": ["Mediastinum", "Slices"],
        },
    )
