"""Where the lungs lie in a CT volume: a threshold and components, no weights.

Legend: S slices, H rows, W columns; a box has a start and an end, not included, along each of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

AIR = -320
"""HU below which a voxel is air."""
COARSE = 2.0
"""Millimetres of the grid that is looked at: finer volumes are thinned out."""
LEAST_ML = 50.0
"""Of the larger lung; bowel gas alone is no lung."""
SECOND = 0.1
"""Share of the larger component that the second one must have; a smaller one is no lung."""
FAINT = 0.02
"""Share of the largest lung area below which a slice does not count: the windpipe, that goes on to the throat."""


def lung_box(values: npt.NDArray[Any], spacing: tuple[float, float, float], margin: float) -> Box | None:
    """The box around the two largest lung components, and `margin` mm on every side; None where there are no lungs.

    Air outside the body and inside the table does not count: lungs lie within the largest piece of tissue.

    Args:
        values: HU (S, H, W).
        spacing: mm from slice to slice, row to row, column to column.
        margin: mm.
    """
    step = [max(1, int(COARSE / mm)) for mm in spacing]
    lungs = _lungs(values[:: step[0], :: step[1], :: step[2]] > AIR, LEAST_ML * 1000 / math.prod(np.multiply(step, spacing)))
    if not lungs.any():
        return None
    areas = lungs.sum(axis=(1, 2))
    lungs = lungs & (areas >= FAINT * areas.max())[:, None, None]
    more = [math.ceil(margin / mm) for mm in spacing]
    sides = zip(around(lungs), step, more, values.shape, strict=True)
    found = [(max(0, low * thin - by), min(size, high * thin + by)) for (low, high), thin, by, size in sides]
    return found[0], found[1], found[2]


def around(mask: npt.NDArray[Any]) -> Box:
    """The smallest box that holds what is set; `mask` (S, H, W) has something set."""
    found = []
    for axis in range(3):
        places = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        found.append((int(places[0]), int(places[-1]) + 1))
    return found[0], found[1], found[2]


def joined(one: Box, other: Box) -> Box:
    """The smallest box that holds two."""
    found = [(min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(one, other, strict=True)]
    return found[0], found[1], found[2]


def _lungs(tissue: npt.NDArray[np.bool_], least: float) -> npt.NDArray[np.bool_]:
    """Air within the body, its largest components, (S, H, W); nothing where the largest has fewer than `least` voxels."""
    whole = sitk.GetImageFromArray(tissue.astype(np.uint8))
    opened = sitk.BinaryMorphologicalOpening(whole, [1, 1, 0])  # takes thin things off the body: the table's shell, clothes
    body = _components(opened) == 1
    # slice by slice, for lungs may be open at the first and last one
    filled = sitk.JoinSeries([sitk.BinaryFillhole(body[:, :, z]) for z in range(body.GetDepth())])
    air = (sitk.GetArrayViewFromImage(filled) > 0) & ~tissue
    parts = sitk.GetArrayFromImage(_components(sitk.GetImageFromArray(air.astype(np.uint8))))
    first, second = (int((parts == number).sum()) for number in (1, 2))
    if first < max(least, 1):
        return np.zeros_like(tissue)
    return (parts == 1) | ((parts == 2) & (second >= SECOND * first))


def _components(mask: sitk.Image) -> sitk.Image:
    """Connected components, numbered from 1 by size."""
    return sitk.RelabelComponent(sitk.ConnectedComponent(mask), sortByObjectSize=True)
