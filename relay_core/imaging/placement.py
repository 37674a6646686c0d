"""Read from DICOM headers where slices lie: positions, directions, distances (PS3.3 C.7.6.2, C.7.6.16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk

from relay_core.errors import ImageError

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


def orientation(header: pydicom.Dataset) -> npt.NDArray[np.float64] | None:
    """Return the directions of a row and of a column, six numbers; None where the header does not tell.

    Raises:
        ValueError: they are not six finite numbers.
        ImageError: they are not two unit vectors at right angles.
    """
    holder = header if "ImageOrientationPatient" in header else group(header, "PlaneOrientationSequence")
    if holder is None or holder.get("ImageOrientationPatient") is None:
        return None
    directions = floats(holder.ImageOrientationPatient, 6)
    row, column = directions[:3], directions[3:]
    if abs(np.linalg.norm(row) - 1) > 1e-2 or abs(np.linalg.norm(column) - 1) > 1e-2 or abs(row @ column) > 1e-2:
        raise ImageError("the DICOM file's ImageOrientationPatient is no pair of directions at right angles")
    return directions


def positions(headers: Sequence[pydicom.Dataset]) -> list[npt.NDArray[np.float64]]:
    """Return each slice's position, x, y, z in mm; a slice whose header does not tell is left out. Raises ValueError."""
    frames = int(headers[0].get("NumberOfFrames") or 1)
    if len(headers) == 1 and frames > 1:
        holders = [group(headers[0], "PlanePositionSequence", i) for i in range(frames)]
    else:
        holders = list(headers)
    return [
        floats(h.ImagePositionPatient, 3) for h in holders if h is not None and h.get("ImagePositionPatient") is not None
    ]


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
                f"the slices lie unevenly: {abs(distance):.2f} mm between slices {i + 1} and {i + 2}, {abs(usual):.2f} mm "
                "elsewhere; a slice is missing, or the files are of several stacks"
            )
        if np.linalg.norm(steps[i] - distance * normal) > max(EVEN, EVEN * abs(usual)):
            raise ImageError(f"the slices do not lie straight behind each other: see slices {i + 1} and {i + 2}")
    return usual


def in_plane(header: pydicom.Dataset, detector: bool = True) -> tuple[float, float] | None:
    """Return the mm from row to row and from column to column; None where the header does not tell.

    With `detector` also the spacing at the detector counts, where no other is known; the image of the patient is magnified.
    """
    measures = group(header, "PixelMeasuresSequence")
    holders = [(header, "PixelSpacing"), (measures, "PixelSpacing"), *([(header, "ImagerPixelSpacing")] if detector else [])]
    for holder, name in holders:
        if holder is not None and holder.get(name) is not None:
            row, column = floats(holder.get(name), 2)
            if min(row, column) > 0:
                return float(row), float(column)
    return None


def thickness(header: pydicom.Dataset) -> float | None:
    """Return the distance of slices in mm that the header states, else their thickness, else None."""
    measures = group(header, "PixelMeasuresSequence")
    for holder in (header, measures):
        for name in ("SpacingBetweenSlices", "SliceThickness"):
            value = holder.get(name) if holder is not None else None
            if value is not None and floats(value, 1)[0] > 0:
                return float(value)
    return None


def geometry(
    values: npt.NDArray[Any], header: pydicom.Dataset, positions: Sequence[npt.NDArray[np.float64]], gap: float | None,
    in_plane: tuple[float, float] | None,
) -> sitk.Image:  # fmt: skip
    """Make an empty image (W, H, S) that lies where the slices lie; what is unknown is 1 mm, or SimpleITK's default."""
    image = sitk.Image([values.shape[2], values.shape[1], values.shape[0]], sitk.sitkUInt8)
    row, column = in_plane or (1.0, 1.0)
    slice_spacing = abs(gap) if gap is not None else thickness(header) or 1.0
    image.SetSpacing((column, row, slice_spacing))
    directions = orientation(header)
    if directions is not None and positions:
        normal = np.cross(directions[:3], directions[3:]) * (1 if gap is None or gap > 0 else -1)
        image.SetOrigin([float(x) for x in positions[0]])
        image.SetDirection([float(x) for x in np.stack([directions[:3], directions[3:], normal], axis=1).ravel()])
    return image
