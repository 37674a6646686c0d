"""Limit the size of images and series that are decoded: larger ones are refused before they take memory."""

from __future__ import annotations

from relay_core.errors import ImageError

MAX_SIDE = 1 << 14
"""Most pixels along one side of a slice; resizing takes memory in proportion to it."""


MAX_PIXELS = 1 << 25
"""Most pixels in one slice."""


MAX_VOXELS = 1 << 27
"""Most pixels in all slices of an image together."""


MAX_BYTES = 1 << 29
"""Most bytes of a decompressed NIfTI file."""


MAX_FILES = 4096
"""Most files in an archive with a DICOM series."""


MAX_SCANS = 64
"""Most scans of a JPEG: a progressive one has about ten, and each takes the time of a whole picture."""


def check_size(slices: int, height: int, width: int) -> None:
    """Raise ImageError where an image of so many slices, rows and columns is empty or too large to be decoded."""
    if height * width > MAX_PIXELS:
        raise ImageError(f"the image has {width} x {height} pixels; a slice may have {MAX_PIXELS}")
    if max(height, width) > MAX_SIDE:
        raise ImageError(f"the image has {width} x {height} pixels; a side may have {MAX_SIDE}")
    if slices * height * width > MAX_VOXELS:
        raise ImageError(f"the image has {slices} slices of {width} x {height}; all together may have {MAX_VOXELS} pixels")
    if min(slices, height, width) < 1:
        raise ImageError("the image is empty")
