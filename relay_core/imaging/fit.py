"""How an image of any shape becomes a square, and how what was found on the square goes back to the image's own pixels.

A `Fit` says what happens to an image that is not square: `stretch` shrinks its longer side more than its shorter one, `pad`
keeps the aspect ratio and adds black, `crop` keeps it and leaves out what is beyond the square in the middle.
Legend: H rows, W columns, R side of the square; along one axis `size` is H or W.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from relay_core.config import Fit

Array = npt.NDArray[Any]
EDGE = 1e-3
"""Pixels of the square that rounding may put a pixel's centre beyond its edge."""


@dataclass(frozen=True)
class Axis:
    """Where the pixels of the square lie along one axis of an image: the centre of pixel i is at (i + 0.5) step + start."""

    size: int
    """Pixels of the image."""
    side: int
    """Pixels of the square."""
    step: float
    """Pixels of the image that one of the square's takes."""
    start: float
    """Where the square begins, in pixels of the image: negative where it reaches beyond the image."""

    def shrinking(self) -> npt.NDArray[np.float32]:
        """Return (side, size): how much each pixel of the image contributes to each of the square.

        Bilinear with antialiasing: triangles as wide as the step. Pixels of the square beyond the image get 0: black.
        """
        return _shrinking(self)

    def enlarging(self) -> npt.NDArray[np.float32]:
        """Return (size, side): how much each pixel of the square contributes to each of the image.

        Bilinear without antialiasing, edges repeated (torch's `interpolate` with align_corners=False). A pixel of the image
        that the square leaves out gets 0.
        """
        return _enlarging(self)

    def nearest(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Return for each pixel of the square the nearest one of the image, and whether it lies inside it."""
        centres = (np.arange(self.side) + 0.5) * self.step + self.start
        return np.floor(centres).astype(np.intp).clip(0, self.size - 1), (centres > 0) & (centres < self.size)


def axes(height: int, width: int, side: int, fit: Fit) -> tuple[Axis, Axis]:
    """Return how rows and columns of an image of H x W pixels lie on a square of `side` pixels."""
    if fit == "stretch":
        return Axis(height, side, height / side, 0.0), Axis(width, side, width / side, 0.0)
    span = max(height, width) if fit == "pad" else min(height, width)
    rows, columns = (Axis(size, side, span / side, (size - span) / 2) for size in (height, width))
    return rows, columns


def shrink(images: Array, side: int, fit: Fit = "stretch") -> npt.NDArray[np.float32]:
    """Bring images (N, C, H, W) to (N, C, side, side); an enlarged image is blurred, one that is reduced is averaged."""
    rows, columns = (axis.shrinking() for axis in axes(images.shape[2], images.shape[3], side, fit))
    result = np.empty((*images.shape[:2], side, side), np.float32)
    for image, small in zip(images, result, strict=True):
        np.matmul(np.matmul(rows, image), columns.T, out=small)
    return result


def shrink_mask(ids: Array, side: int, fit: Fit) -> Array:
    """Bring class ids (H, W) to (side, side) by the nearest pixel; what lies beyond the image is background, class 0."""
    (rows, known_rows), (columns, known_columns) = (axis.nearest() for axis in axes(ids.shape[0], ids.shape[1], side, fit))
    return np.where(known_rows[:, None] & known_columns, ids[np.ix_(rows, columns)], 0).astype(ids.dtype)


@lru_cache(32)
def _shrinking(axis: Axis) -> npt.NDArray[np.float32]:
    source = np.arange(axis.size, dtype=np.float32) + np.float32(0.5)
    target = (np.arange(axis.side, dtype=np.float32) + np.float32(0.5)) * np.float32(axis.step) + np.float32(axis.start)
    width = np.float32(max(axis.step, 1.0))
    inside = (target > 0) & (target < axis.size)
    # where the image grows, the edge pixel is repeated up to the edge
    centre = np.clip(target, 0.5, axis.size - 0.5) if axis.step <= 1 else target.clip(0, axis.size)
    weights = np.clip(1 - np.abs(source - centre[:, None]) / width, 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True) * inside[:, None], np.float32)


@lru_cache(32)
def _enlarging(axis: Axis) -> npt.NDArray[np.float32]:
    centres = (np.arange(axis.size, dtype=np.float32) + np.float32(0.5) - np.float32(axis.start)) / np.float32(axis.step)
    places = np.clip(centres - np.float32(0.5), 0, axis.side - 1)
    below = places.astype(np.intp)
    share = places - below
    weights = np.zeros((axis.size, axis.side), np.float32)
    rows = np.arange(axis.size)
    weights[rows, below] += 1 - share
    weights[rows, np.minimum(below + 1, axis.side - 1)] += share
    return weights * ((centres > -EDGE) & (centres < axis.side + EDGE))[:, None]
