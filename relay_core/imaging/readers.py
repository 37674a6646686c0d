"""Read 2-D images and masks from PNG, JPEG, TIFF and NIfTI files, and write masks.

Every failure is a `DataError` with one `Problem`, whose file is the bare file name, and whose message is the true reason.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from PIL import Image

from relay_core.errors import DataError, ImageError, Problem
from relay_core.imaging.display import stretch
from relay_core.imaging.grid import Grid
from relay_core.imaging.nifti import Nifti, read_grid, read_nifti
from relay_core.imaging.pictures import read_picture

Spacing = tuple[float, float]
"""Millimetres of one pixel: along a column (from row to row), then along a row."""

PILLOW_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
NIFTI_SUFFIXES = (".nii.gz", ".nii")
SUFFIXES = PILLOW_SUFFIXES + NIFTI_SUFFIXES

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def suffix_of(path: Path) -> str | None:
    """Return the supported suffix of a file name in lower case (`.nii.gz` is one suffix), or None."""
    return next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)


def stem_of(path: Path) -> str:
    """Return the file name without its supported suffix."""
    suffix = suffix_of(path)
    return path.name[: -len(suffix)] if suffix else path.name


def read_image(path: Path, channels: int = 3) -> tuple[npt.NDArray[Any], Spacing | None]:
    """Read an image, upright (Orientation of EXIF and TIFF) or, of NIfTI, in LPS.

    8-bit PNG, JPEG and TIFF files stay uint8, 0 to 255. All others become float32, 0 to 1: unsigned 16 bits by
    value / 65535; NIfTI, signed and floating-point images by the minimum and maximum of the slice (a constant one is 0).
    Transparency is dropped. Colour becomes grey by luma, grey becomes colour by repetition.

    Shape:
        (channels, H, W), uint8 or float32; and the spacing in mm, None where the file does not say.

    Raises:
        DataError: not readable, not 2-D, or not finite.
    """
    plane = _read_plane(path, None)
    pixels = plane.values
    if pixels.dtype != np.uint8 or plane.grid is not None:
        pixels = _unit_range(pixels, path, full_scale=plane.grid is None)
    return to_channels(pixels, channels), plane.spacing


def to_channels(pixels: npt.NDArray[Any], channels: int) -> npt.NDArray[Any]:
    """Bring (H, W) or (H, W, 3) to (channels, H, W): colour becomes grey by luma, grey becomes colour by repetition."""
    if pixels.ndim == 2:
        return np.ascontiguousarray(np.broadcast_to(pixels, (channels, *pixels.shape)))
    if channels == 1:
        grey = pixels.astype(np.float32) @ _LUMA
        return (np.rint(grey).astype(np.uint8) if pixels.dtype == np.uint8 else grey)[None]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_mask(path: Path, image: Path | None = None) -> npt.NDArray[Any]:
    """Read the values of a mask as they stand in the file (a bilevel file gives 0 and 255, a palette file its indices).

    Args:
        path: the mask.
        image: the image that it belongs to: where both are NIfTI, they must lie on one grid, in whatever storage order.

    Shape:
        (H, W), uint8, uint16 or int64.

    Raises:
        DataError: not readable, not 2-D, on another grid, colours that are not grey, or values that are not whole numbers.
    """
    nifti = image is not None and suffix_of(image) in NIFTI_SUFFIXES and suffix_of(path) in NIFTI_SUFFIXES
    plane = _read_plane(path, _grid_of(image) if nifti and image is not None else None)
    pixels = plane.values if plane.indices is None else plane.indices
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            _fail(path, "is a colour mask; a mask must be grey, RGB with three equal channels, or a palette of class ids")
        pixels = np.ascontiguousarray(pixels[..., 0])
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    whole = np.nan_to_num(pixels, nan=0.5, posinf=0.5, neginf=0.5)
    if (whole != np.rint(whole)).any():
        _fail(path, "has mask values that are not whole numbers")
    return whole.astype(np.int64)


def write_mask(path: Path, array: npt.NDArray[Any], spacing: Spacing | None = None, *, like: Path | None = None) -> None:
    """Write class ids or mask values (H, W), at least 0, as grey PNG or NIfTI, 8 bits where they fit, else 16.

    Args:
        path: ends in `.png`, `.nii` or `.nii.gz`.
        array: the values, in rows and columns as `read_image` gives the image.
        spacing: mm of a pixel, for NIfTI; PNG cannot hold it.
        like: a NIfTI image of the same size whose geometry and storage order are taken over, for NIfTI.

    Raises:
        DataError: another suffix, or values that a mask cannot hold.
    """
    suffix = suffix_of(path)
    if suffix not in (".png", *NIFTI_SUFFIXES):
        _fail(path, "a mask is written as .png, .nii or .nii.gz")
    if array.ndim != 2 or (array.size and (array.min() < 0 or array.max() > 65535)):
        _fail(path, "a mask must have rows and columns, and values from 0 to 65535")
    values = array.astype(np.uint8 if not array.size or array.max() <= 255 else np.uint16)
    if suffix == ".png":
        Image.fromarray(values).save(path)
        return
    if like is not None and suffix_of(like) in NIFTI_SUFFIXES:
        grid = _grid_of(like)
    else:
        grid = Grid.of_stack((1, *values.shape), None, None if spacing is None else (1.0, *spacing))
    _write_nifti(path, grid, values)


def write_volume(path: Path, slices: npt.NDArray[np.uint8], spacing: Spacing | None = None) -> None:
    """Write class ids (D, H, W) as one NIfTI volume.

    Args:
        path: ends in `.nii` or `.nii.gz`.
        slices: class ids.
        spacing: mm of a pixel, row then column; the distance of the slices is not known and stays 1.
    """
    depth, height, width = slices.shape
    _write_nifti(path, Grid.of_stack((depth, height, width), None, None if spacing is None else (1.0, *spacing)), slices)


def _write_nifti(path: Path, grid: Grid, values: npt.NDArray[Any]) -> None:
    content = grid.to_nifti(values)
    path.write_bytes(content if path.name.lower().endswith(".gz") else gzip.decompress(content))


def _fail(path: Path, message: str) -> NoReturn:
    raise DataError("a file cannot be used", [Problem(path.name, message)])


@dataclass(frozen=True)
class _Plane:
    """A 2-D image as its file holds it."""

    values: npt.NDArray[Any]
    """(H, W) or (H, W, 3)."""
    spacing: Spacing | None
    indices: npt.NDArray[np.uint8] | None = None
    """Of a palette file."""
    grid: Grid | None = None
    """Of a NIfTI file."""


def _read_plane(path: Path, like: Grid | None) -> _Plane:
    suffix = suffix_of(path)
    if suffix is None:
        _fail(path, f"is of an unsupported type; use {', '.join(SUFFIXES)}")
    if not path.is_file():
        _fail(path, "is missing")
    try:
        if suffix in PILLOW_SUFFIXES:
            picture = read_picture(path)
            return _Plane(picture.values, None, picture.indices)
        nifti = read_nifti(path, like)
    except ImageError as error:
        _fail(path, str(error))
    if like is not None and (fault := nifti.grid.disagreement(like)):
        _fail(path, f"{fault}; resample it on the grid of its image")
    axes = plane_axes(nifti)
    if axes is None:
        size = " x ".join(map(str, nifti.values.shape[::-1]))
        _fail(path, f"is a volume of {size}; give 2-D slices, one a file (relay prepare slices makes them)")
    rows, columns = axes
    spacing = None if nifti.spacing is None else (nifti.spacing[rows], nifti.spacing[columns])
    return _Plane(nifti.values.reshape(nifti.values.shape[rows], nifti.values.shape[columns]), spacing, None, nifti.grid)


def plane_axes(nifti: Nifti) -> tuple[int, int] | None:
    """Which of the axes (S, H, W) are rows and columns of a picture: the two longer than 1; None for a volume."""
    kept = [0, 1, 2]
    for axis in range(3):
        if len(kept) > 2 and nifti.values.shape[axis] == 1:
            kept.remove(axis)
    return (kept[0], kept[1]) if len(kept) == 2 else None


def _grid_of(path: Path) -> Grid:
    try:
        return read_grid(path)
    except ImageError as error:
        _fail(path, str(error))


def _unit_range(pixels: npt.NDArray[Any], path: Path, *, full_scale: bool) -> npt.NDArray[np.float32]:
    """Scale pixels to 0..1: with `full_scale` unsigned 16 bits by 65535, all others by their minimum and maximum."""
    if full_scale and pixels.dtype == np.uint16:
        return pixels.astype(np.float32) / np.float32(65535)
    if not np.isfinite(pixels).all():
        _fail(path, "has values that are not finite numbers")
    return stretch(pixels)
