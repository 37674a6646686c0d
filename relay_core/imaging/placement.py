"""Read from DICOM headers where slices lie: positions, directions, distances (PS3.3 C.7.6.2, C.7.6.16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from relay_core.errors import ImageError

if TYPE_CHECKING:
    import pydicom

EVEN = 0.01
"""Largest difference between distances of slices, in mm and as a share of the distance; the larger of both counts."""


def group(header: pydicom.Dataset, name: str, frame: int = 0) -> pydicom.Dataset | None:
    """Return a functional group of a multi-frame file: the frame's own, else the one that all frames share, else None."""
    for sequence in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        groups = header.get(sequence) or []
        frame_group = groups[frame] if len(groups) > frame and sequence.startswith("Per") else groups[0] if groups else None
        if frame_group is not None and frame_group.get(name):
            item: pydicom.Dataset = frame_group[name].value[0]
            return item
    return None


def floats(value: Any, count: int | None = None) -> npt.NDArray[np.float64]:
    """Convert a header's value to finite numbers, `count` of them if given. Raises ValueError where it is none of these."""
    numbers = np.atleast_1d(np.asarray(value, dtype=np.float64))
    if not np.isfinite(numbers).all() or (count is not None and numbers.shape != (count,)):
        raise ValueError
    return numbers


def orientation(header: pydicom.Dataset, frame: int = 0) -> npt.NDArray[np.float64] | None:
    """Return the directions of a row and of a column, six numbers; None where the header does not tell.

    Raises:
        ValueError: they are not six finite numbers.
        ImageError: they are not two unit vectors at right angles.
    """
    holder = header if "ImageOrientationPatient" in header else group(header, "PlaneOrientationSequence", frame)
    if holder is None or holder.get("ImageOrientationPatient") is None:
        return None
    directions = floats(holder.ImageOrientationPatient, 6)
    row, column = directions[:3], directions[3:]
    if abs(np.linalg.norm(row) - 1) > 1e-2 or abs(np.linalg.norm(column) - 1) > 1e-2 or abs(row @ column) > 1e-2:
        raise ImageError("the DICOM file's ImageOrientationPatient is no pair of directions at right angles")
    return directions


def position(header: pydicom.Dataset, frame: int = 0) -> npt.NDArray[np.float64] | None:
    """Return the position of a frame's first pixel, x, y, z in mm; None where it is not told. Raises ValueError."""
    holder = header if "ImagePositionPatient" in header else group(header, "PlanePositionSequence", frame)
    if holder is None or holder.get("ImagePositionPatient") is None:
        return None
    return floats(holder.ImagePositionPatient, 3)


def gap(positions: Sequence[npt.NDArray[np.float64]], orientation: npt.NDArray[np.float64] | None) -> float | None:
    """Return the distance of neighbouring slices in mm; None for one slice, or where the orientation is unknown.

    The distance is negative where the slices run against the normal of their plane.

    Raises:
        ImageError: the slices lie unevenly, beside each other, or several at one position.
    """
    if len(positions) < 2 or orientation is None:
        return None
    normal = np.cross(orientation[:3], orientation[3:])
    steps = np.diff(np.stack(positions), axis=0)
    gaps = steps @ normal
    usual = float(np.median(gaps))
    if abs(usual) < EVEN:
        raise ImageError("the series has several files at one position; send one stack of slices")
    for i, distance in enumerate(gaps):
        if abs(distance - usual) > max(EVEN, EVEN * abs(usual)):
            raise ImageError(
                f"the slices lie unevenly: {abs(distance):.6g} mm between slices {i + 1} and {i + 2}, {abs(usual):.6g} mm "
                "elsewhere; a slice is missing, or the files are of several stacks"
            )
        if np.linalg.norm(steps[i] - distance * normal) > max(EVEN, EVEN * abs(usual)):
            raise ImageError(f"the slices do not lie straight behind each other: see slices {i + 1} and {i + 2}")
    return usual


def in_plane(header: pydicom.Dataset, detector: bool = True, frame: int = 0) -> tuple[float, float] | None:
    """Return the mm from row to row and from column to column; None where the header does not tell.

    With `detector` the spacing at the detector will do; otherwise it is the patient's, who is magnified in a projection: a
    spacing that only repeats the detector's is divided by the estimated magnification, or not known.
    """
    measures = group(header, "PixelMeasuresSequence", frame)
    imager = _pair(header, "ImagerPixelSpacing")
    for holder in (header, measures):
        spacing = None if holder is None else _pair(holder, "PixelSpacing")
        if spacing is not None:
            if spacing != imager or detector or header.get("PixelSpacingCalibrationType"):
                return spacing
            break  # it repeats the detector's: nobody calibrated it (PS3.3 10.7.1.3)
    if detector or imager is None:
        return imager
    factor = header.get("EstimatedRadiographicMagnificationFactor")
    return (imager[0] / float(factor), imager[1] / float(factor)) if factor is not None and float(factor) > 0 else None


def _pair(header: pydicom.Dataset, name: str) -> tuple[float, float] | None:
    """Two lengths above 0; None where the header does not say them."""
    if header.get(name) is None:
        return None
    row, column = floats(header.get(name), 2)
    return (float(row), float(column)) if min(row, column) > 0 else None


def thickness(header: pydicom.Dataset) -> float | None:
    """Return the distance of slices in mm that the header states, else their thickness, else None."""
    measures = group(header, "PixelMeasuresSequence")
    for holder in (header, measures):
        for name in ("SpacingBetweenSlices", "SliceThickness"):
            value = holder.get(name) if holder is not None else None
            if value is not None and floats(value, 1)[0] > 0:
                return float(value)
    return None


def affine_of(
    orientation: npt.NDArray[np.float64] | None, position: npt.NDArray[np.float64] | None,
    in_plane: tuple[float, float] | None, between: float | None,
) -> npt.NDArray[np.float64] | None:  # fmt: skip
    """Return what leads from (column, row, slice) to LPS millimetres: (4, 4); None where the files do not say.

    Args:
        orientation: directions of a row and of a column.
        position: of the first slice.
        in_plane: millimetres from row to row and from column to column.
        between: millimetres from slice to slice, along the normal; None counts as 1, for a single slice.
    """
    if orientation is None or position is None or in_plane is None:
        return None
    affine = np.eye(4)
    row, column = orientation[:3], orientation[3:]
    affine[:3, 0], affine[:3, 1] = row * in_plane[1], column * in_plane[0]
    affine[:3, 2], affine[:3, 3] = np.cross(row, column) * (between or 1.0), position
    return affine
