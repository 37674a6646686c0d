"""Where the slices of DICOM files lie: positions, directions, distances, from their headers (PS3.3 C.7.6.2, C.7.6.16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk

from relay_core.errors import ImageError

EVEN = 0.01
"""Millimetres, and share of the distance, by which distances of slices may differ."""


def group(header: pydicom.Dataset, name: str, frame: int = 0) -> pydicom.Dataset | None:
    """A functional group of a multi-frame file: of one frame, else what all share."""
    for holder in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        groups = header.get(holder) or []
        group = groups[frame] if len(groups) > frame and holder.startswith("Per") else groups[0] if groups else None
        if group is not None and group.get(name):
            found: pydicom.Dataset = group[name].value[0]
            return found
    return None


def floats(value: Any, count: int | None = None) -> npt.NDArray[np.float64]:
    """Finite numbers, so many. Raises ValueError."""
    found = np.atleast_1d(np.asarray(value, dtype=np.float64))
    if not np.isfinite(found).all() or (count is not None and found.shape != (count,)):
        raise ValueError
    return found


def orientation(header: pydicom.Dataset) -> npt.NDArray[np.float64] | None:
    """Directions of a row and of a column, six numbers. Raises ValueError, ImageError."""
    holder = header if "ImageOrientationPatient" in header else group(header, "PlaneOrientationSequence")
    if holder is None or holder.get("ImageOrientationPatient") is None:
        return None
    found = floats(holder.ImageOrientationPatient, 6)
    row, column = found[:3], found[3:]
    if abs(np.linalg.norm(row) - 1) > 1e-2 or abs(np.linalg.norm(column) - 1) > 1e-2 or abs(row @ column) > 1e-2:
        raise ImageError("the DICOM file's ImageOrientationPatient is no pair of directions at right angles")
    return found


def positions(headers: Sequence[pydicom.Dataset]) -> list[npt.NDArray[np.float64]]:
    """Of each slice; fewer where the files do not tell."""
    frames = int(headers[0].get("NumberOfFrames") or 1)
    if len(headers) == 1 and frames > 1:
        holders = [group(headers[0], "PlanePositionSequence", i) for i in range(frames)]
    else:
        holders = list(headers)
    return [
        floats(h.ImagePositionPatient, 3) for h in holders if h is not None and h.get("ImagePositionPatient") is not None
    ]


def gap(positions: Sequence[npt.NDArray[np.float64]], orientation: npt.NDArray[np.float64] | None) -> float | None:
    """Distance of neighbouring slices in mm; None for one slice, or where nothing is known.

    Raises:
        ImageError: they lie unevenly, beside each other, or twice at one place.
    """
    if len(positions) < 2 or orientation is None:
        return None
    normal = np.cross(orientation[:3], orientation[3:])
    steps = np.diff(np.stack(positions), axis=0)
    gaps = steps @ normal
    usual = float(np.median(gaps))
    if abs(usual) < EVEN:
        raise ImageError("the series has several files at one position; send one stack of slices")
    for i, gap in enumerate(gaps):
        if abs(gap - usual) > max(EVEN, EVEN * abs(usual)):
            raise ImageError(
                f"the slices lie unevenly: {abs(gap):.2f} mm between slices {i + 1} and {i + 2}, {abs(usual):.2f} mm "
                "elsewhere; a slice is missing, or the files are of several stacks"
            )
        if np.linalg.norm(steps[i] - gap * normal) > max(EVEN, EVEN * abs(usual)):
            raise ImageError(f"the slices do not lie straight behind each other: see slices {i + 1} and {i + 2}")
    return usual


def in_plane(header: pydicom.Dataset, detector: bool = True) -> tuple[float, float] | None:
    """Row to row, column to column, in mm; with `detector` also where it is known at the detector alone (magnified)."""
    measures = group(header, "PixelMeasuresSequence")
    holders = [(header, "PixelSpacing"), (measures, "PixelSpacing"), *([(header, "ImagerPixelSpacing")] if detector else [])]
    for holder, name in holders:
        if holder is not None and holder.get(name) is not None:
            row, column = floats(holder.get(name), 2)
            if min(row, column) > 0:
                return float(row), float(column)
    return None


def thickness(header: pydicom.Dataset) -> float | None:
    """What the header says of the distance of slices, or of their thickness, in mm."""
    measures = group(header, "PixelMeasuresSequence")
    for holder in (header, measures):
        for name in ("SpacingBetweenSlices", "SliceThickness"):
            found = holder.get(name) if holder is not None else None
            if found is not None and floats(found, 1)[0] > 0:
                return float(found)
    return None


def geometry(
    values: npt.NDArray[Any], header: pydicom.Dataset, positions: Sequence[npt.NDArray[np.float64]], gap: float | None,
    in_plane: tuple[float, float] | None,
) -> sitk.Image:  # fmt: skip
    """An empty image (W, H, S) that lies where the slices lie; of what is not known the plainest."""
    image = sitk.Image([values.shape[2], values.shape[1], values.shape[0]], sitk.sitkUInt8)
    row, column = in_plane or (1.0, 1.0)
    between = abs(gap) if gap is not None else thickness(header) or 1.0
    image.SetSpacing((column, row, between))
    turned = orientation(header)
    if turned is not None and positions:
        normal = np.cross(turned[:3], turned[3:]) * (1 if gap is None or gap > 0 else -1)
        image.SetOrigin([float(x) for x in positions[0]])
        image.SetDirection([float(x) for x in np.stack([turned[:3], turned[3:], normal], axis=1).ravel()])
    return image
