"""The largest images and series that are decoded; what is larger is refused before it takes memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay_core.errors import ImageError

if TYPE_CHECKING:
    pass

MAX_SIDE = 1 << 14
"""Pixels of a side: resizing takes memory by it."""


MAX_PIXELS = 1 << 25
"""Pixels of one slice."""


MAX_VOXELS = 1 << 27
"""Pixels of all slices together."""


MAX_BYTES = 1 << 29
"""Of all pixels as they are decoded."""


MAX_FILES = 4096
"""Files of a DICOM series."""


def check_size(slices: int, height: int, width: int) -> None:
    """Raise ImageError where there is more than can be worked on."""
    if height * width > MAX_PIXELS:
        raise ImageError(f"the image has {width} x {height} pixels; a slice may have {MAX_PIXELS}")
    if max(height, width) > MAX_SIDE:
        raise ImageError(f"the image has {width} x {height} pixels; a side may have {MAX_SIDE}")
    if slices * height * width > MAX_VOXELS:
        raise ImageError(f"the image has {slices} slices of {width} x {height}; all together may have {MAX_VOXELS} pixels")
    if min(slices, height, width) < 1:
        raise ImageError("the image is empty")
