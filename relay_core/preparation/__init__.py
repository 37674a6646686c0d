"""Turn volumes and their labels into the slices of a data set.

This package loads no torch, and loads its heavy modules only when they are used.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from relay_core.preparation.run import REPORT, prepare
    from relay_core.preparation.selection import Selection
    from relay_core.preparation.slicing import AXES, Mediastinum, Slices, turned
    from relay_core.preparation.volumes import SUFFIXES, Volume, read_volume, stem_of, suffix_of
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        [],
        {
            "run": ["REPORT", "prepare"],
            "selection": ["Selection"],
            "slicing": ["AXES", "Mediastinum", "Slices", "turned"],
            "volumes": ["SUFFIXES", "Volume", "read_volume", "stem_of", "suffix_of"],
        },
    )
