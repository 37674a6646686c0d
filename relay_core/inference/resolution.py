"""Run a network at its own resolution, whatever the size of the images, with the memory of a few slices.

Shrinking as training shrinks its images, and enlarging the network's answers, cost more than a small network itself when the
graph of the exported model does both for many large slices at once. Here they are matrix products, slice by slice.
Legend: N images, C channels, H rows, W columns, R the network's resolution, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from relay_core.config import Fit
from relay_core.imaging import axes, shrink

Array = npt.NDArray[Any]
ModelCall = Callable[[Array, Sequence[str]], Sequence[Array]]
"""A model as a function: images (N, C, H, W) float32 in 0..1, and names of outputs -> these outputs; see `OnnxModel`."""
_VALUES = 1 << 22
"""Most enlarged values that are in memory at once."""


def at_resolution(run: ModelCall, side: int, fit: Fit = "stretch") -> ModelCall:
    """Wrap a model so that it sees its images at its own resolution; the outputs are of the images' own size, as without.

    Args:
        run: the model; it is asked for `logits` where mask or confidence are wanted.
        side: R, in pixels.
        fit: how an image becomes a square, as in training.

    Returns:
        A model with the outputs mask (N, H, W) uint8 and confidence (N, H, W) float32; all others, such as the
        probabilities of a classifier, are passed on.
    """

    def call(images: Array, outputs: Sequence[str]) -> list[Array]:
        height, width = images.shape[2:]
        small = shrink(images, side, fit)
        passed_on = [name for name in outputs if name not in ("mask", "confidence")]
        if len(passed_on) == len(outputs):
            return list(run(small, outputs))
        logits, *others = run(small, ("logits", *passed_on))
        results = dict(zip(passed_on, others, strict=True))
        results["mask"] = np.empty((len(images), height, width), np.uint8)
        results["confidence"] = np.empty((len(images), height, width), np.float32)
        for i, of_image in enumerate(logits):
            _decide(of_image, results["mask"][i], results["confidence"][i], fit)
        return [results[name] for name in outputs]

    return call


def _decide(logits: Array, mask: Array, confidence: Array, fit: Fit) -> None:
    """Enlarge the logits (K, R, R) of one image, and write the most probable class of each pixel and its probability.

    Pixels that the network did not see (`fit: crop`) are background, with the confidence of a guess, 1 / K.
    """
    height, width = mask.shape
    rows, columns = (axis.enlarging() for axis in axes(height, width, logits.shape[1], fit))
    wide = np.matmul(logits, columns.T)  # (K, R, W)
    step = max(1, _VALUES // (width * len(logits)))
    for start in range(0, height, step):
        block = np.matmul(rows[start : start + step], wide)  # (K, rows, W)
        np.copyto(mask[start : start + step], block.argmax(axis=0), casting="unsafe")
        block -= block.max(axis=0)
        np.exp(block, out=block)
        np.divide(1, block.sum(axis=0), out=confidence[start : start + step])
