"""Find the lungs in a CT volume by a threshold and connected components, without a network.

Legend: S slices, H rows, W columns; a box has a start and an exclusive end along each of them.
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
"""Spacing in millimetres of the grid that is searched; finer volumes are subsampled to about this."""
LEAST_ML = 50.0
"""Least volume in ml of the larger lung; less is taken for bowel gas."""
SECOND = 0.1
"""Least size of the second lung as a share of the larger one; a smaller component is no lung."""
FAINT = 0.02
"""Share of the largest lung area below which a slice does not count: it shows only the windpipe, up to the throat."""


def lung_box(values: npt.NDArray[Any], spacing: tuple[float, float, float], margin: float) -> Box | None:
    """Return the box around the two largest lung components, with a margin on every side; None where there are no lungs.

    Air outside the body and inside the table does not count: lungs lie within the largest piece of tissue.

    Args:
        values: HU (S, H, W).
        spacing: mm from slice to slice, row to row, column to column.
        margin: mm on every side; the box ends at the volume's border.
    """
    strides = [max(1, int(COARSE / mm)) for mm in spacing]
    lungs = _lungs(
        values[:: strides[0], :: strides[1], :: strides[2]] > AIR, LEAST_ML * 1000 / math.prod(np.multiply(strides, spacing))
    )
    if not lungs.any():
        return None
    areas = lungs.sum(axis=(1, 2))
    lungs = lungs & (areas >= FAINT * areas.max())[:, None, None]
    margins = [math.ceil(margin / mm) for mm in spacing]
    sides = zip(around(lungs), strides, margins, values.shape, strict=True)
    bounds = [(max(0, low * stride - extra), min(size, high * stride + extra)) for (low, high), stride, extra, size in sides]
    return bounds[0], bounds[1], bounds[2]


def around(mask: npt.NDArray[Any]) -> Box:
    """Return the smallest box that holds all set voxels of `mask` (S, H, W), which has at least one."""
    bounds = []
    for axis in range(3):
        places = np.flatnonzero(mask.any(axis=tuple(across for across in range(3) if across != axis)))
        bounds.append((int(places[0]), int(places[-1]) + 1))
    return bounds[0], bounds[1], bounds[2]


def joined(one: Box, other: Box) -> Box:
    """Return the smallest box that holds two boxes."""
    bounds = [(min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(one, other, strict=True)]
    return bounds[0], bounds[1], bounds[2]


def _lungs(tissue: npt.NDArray[np.bool_], least: float) -> npt.NDArray[np.bool_]:
    """Return the two largest components of air within the body, (S, H, W), less a second one that is too small.

    The result is empty where the largest has fewer than `least` voxels; `tissue` (S, H, W) marks what is not air.
    """
    tissue_image = sitk.GetImageFromArray(tissue.astype(np.uint8))
    # the opening separates thin things, such as the table's shell and clothes, from the body
    opened = sitk.BinaryMorphologicalOpening(tissue_image, [1, 1, 0])
    body = _components(opened) == 1
    # filled slice by slice, since lungs may be open at the first and last slice
    filled = sitk.JoinSeries([sitk.BinaryFillhole(body[:, :, z]) for z in range(body.GetDepth())])
    air = (sitk.GetArrayViewFromImage(filled) > 0) & ~tissue
    parts = sitk.GetArrayFromImage(_components(sitk.GetImageFromArray(air.astype(np.uint8))))
    first_size, second_size = (int((parts == number).sum()) for number in (1, 2))
    if first_size < max(least, 1):
        return np.zeros_like(tissue)
    return (parts == 1) | ((parts == 2) & (second_size >= SECOND * first_size))


def _components(mask: sitk.Image) -> sitk.Image:
    """Return the connected components of a mask, numbered from 1 in descending order of size."""
    return sitk.RelabelComponent(sitk.ConnectedComponent(mask), sortByObjectSize=True)
