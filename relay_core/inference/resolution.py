"""Run a network at its own resolution, whatever the size of the images, with the memory of a few slices.

Shrinking as training shrinks its images, and enlarging the network's answers, cost more than a small network itself when the
graph of the exported model does both for many large slices at once. Here they are matrix products, slice by slice.
Legend: N images, C channels, H rows, W columns, R the network's resolution, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
ModelCall = Callable[[Array, Sequence[str]], Sequence[Array]]
"""A model as a function: images (N, C, H, W) float32 in 0..1, and names of outputs -> these outputs; see `OnnxModel`."""
_VALUES = 1 << 22
"""Most enlarged values that are in memory at once."""


def at_resolution(run: ModelCall, side: int) -> ModelCall:
    """Wrap a model so that it sees its images at its own resolution; the outputs are of the images' own size, as without.

    Args:
        run: the model; it is asked for `logits` where mask or confidence are wanted.
        side: R, in pixels.

    Returns:
        A model with the outputs mask (N, H, W) uint8 and confidence (N, H, W) float32; all others, such as the
        probabilities of a classifier, are passed on.
    """

    def call(images: Array, outputs: Sequence[str]) -> list[Array]:
        height, width = images.shape[2:]
        small = shrunk(images, side)
        passed_on = [name for name in outputs if name not in ("mask", "confidence")]
        if len(passed_on) == len(outputs):
            return list(run(small, outputs))
        logits, *others = run(small, ("logits", *passed_on))
        results = dict(zip(passed_on, others, strict=True))
        results["mask"] = np.empty((len(images), height, width), np.uint8)
        results["confidence"] = np.empty((len(images), height, width), np.float32)
        for i, of_image in enumerate(logits):
            _decide(of_image, results["mask"][i], results["confidence"][i])
        return [results[name] for name in outputs]

    return call


def shrunk(images: Array, side: int) -> npt.NDArray[np.float32]:
    """Resize (N, C, H, W) to (N, C, side, side), bilinearly with antialiasing, as `inference.served.resize` does."""
    rows, columns = (_shrinking(size, side) for size in images.shape[2:])
    result = np.empty((*images.shape[:2], side, side), np.float32)
    for image, small in zip(images, result, strict=True):
        np.matmul(np.matmul(rows, image), columns.T, out=small)
    return result


@lru_cache(16)
def _shrinking(size: int, side: int) -> npt.NDArray[np.float32]:
    """(side, size): how much each of `size` pixels contributes to each of `side`, as triangles as wide as the step."""
    step = size / side
    source = np.arange(size, dtype=np.float32) + np.float32(0.5)
    target = ((np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(step))[:, None]
    width = np.float32(max(step, 1.0))
    centre = target if width > 1 else np.clip(target, np.float32(0.5), np.float32(size - 0.5))
    weights = np.clip(1 - np.abs(source - centre) / width, 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


@lru_cache(16)
def _enlarging(side: int, size: int) -> npt.NDArray[np.float32]:
    """(size, side): bilinear without antialiasing, edges repeated (torch's `interpolate` with align_corners=False)."""
    places = np.maximum((np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(side / size) - np.float32(0.5), 0)
    below = places.astype(np.intp)
    share = places - below
    weights = np.zeros((size, side), np.float32)
    rows = np.arange(size)
    weights[rows, below] += 1 - share
    weights[rows, np.minimum(below + 1, side - 1)] += share
    return weights


def _decide(logits: Array, mask: Array, confidence: Array) -> None:
    """Enlarge the logits (K, R, R) of one image, and write the most probable class of each pixel and its probability."""
    height, width = mask.shape
    rows, columns = _enlarging(logits.shape[1], height), _enlarging(logits.shape[2], width)
    wide = np.matmul(logits, columns.T)  # (K, R, W)
    step = max(1, _VALUES // (width * len(logits)))
    for start in range(0, height, step):
        block = np.matmul(rows[start : start + step], wide)  # (K, rows, W)
        np.copyto(mask[start : start + step], block.argmax(axis=0), casting="unsafe")
        block -= block.max(axis=0)
        np.exp(block, out=block)
        np.divide(1, block.sum(axis=0), out=confidence[start : start + step])
