"""From a study to its mask, its measurements and its warnings, whatever runs the network.

Legend: S slices, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from relay_core.errors import ExportError
from relay_core.imaging import outlier
from relay_core.imaging.measure import measure
from relay_core.imaging.study import Study

OUTPUTS = ("mask", "confidence", "looks")
Run = Callable[[npt.NDArray[Any], Sequence[str]], Sequence[npt.NDArray[Any]]]
"""A model: images (N, C, H, W) float32 in 0..1 and the names of outputs -> these; see `export.session`."""
_PIXELS = 1 << 22
"""Of slices that run together."""


@dataclass(frozen=True)
class Prediction:
    """What a model sees in a study."""

    ids: npt.NDArray[np.uint8]
    """Class ids (S, H, W)."""
    found: dict[str, Any]
    """`measure`, with `unlike` {score, most_like, warn_above} or null, and `warnings`."""

    @property
    def unlike(self) -> float | None:
        """The score of `outlier`."""
        known = self.found["unlike"]
        return known["score"] if known else None


def predict(study: Study, run: Run, names: Sequence[str], looks: Mapping[str, outlier.Looks]) -> Prediction:
    """Run a model over a study, slice by slice.

    Args:
        study: the image or volume.
        run: the model.
        names: of its classes, the background first.
        looks: what the training images looked like, by site.

    Raises:
        ExportError: the model overflows.
    """
    height, width = study.pixels.shape[2:]
    step = max(1, min(32, _PIXELS // (height * width)))
    ids = np.empty((len(study), height, width), np.uint8)
    sure = np.zeros(len(names))
    numbers = []
    for start in range(0, len(study), step):
        stop = min(start + step, len(study))
        ids[start:stop], confidence, seen = run(study.batch(start, stop), OUTPUTS)
        sure += np.bincount(ids[start:stop].ravel(), confidence.ravel(), len(names))
        numbers.append(seen)
    if not np.isfinite(sure).all():
        raise ExportError("the model's probabilities are not finite numbers: take another precision")
    found = measure(study, ids, sure, names)
    scored = outlier.score(np.concatenate(numbers), looks)
    found["unlike"] = {"score": scored[0], "most_like": scored[1], "warn_above": outlier.WARN} if scored else None
    found["warnings"] = _warnings(scored)
    return Prediction(ids, found)


def _warnings(scored: tuple[float, str] | None) -> list[str]:
    if scored is None:
        return ["the model does not say what its training images looked like: nobody checked whether this one is like them"]
    if scored[0] > outlier.WARN:
        return [
            f"the image looks unlike those of the training sites (score {scored[0]:.2f}, usual up to 1; most like "
            f"{scored[1]}): do not rely on the mask"
        ]
    return []
