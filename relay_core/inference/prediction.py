"""From a study to its mask or its class, its measurements and its warnings, whatever runs the network.

Legend: S slices, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from relay_core.errors import ExportError
from relay_core.imaging import Study, out_of_distribution
from relay_core.inference.measurements import measure

ModelCall = Callable[[npt.NDArray[Any], Sequence[str]], Sequence[npt.NDArray[Any]]]
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


def predict(
    study: Study, run: ModelCall, names: Sequence[str], looks: Mapping[str, out_of_distribution.Looks]
) -> Prediction:
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
    ids = np.empty((len(study), height, width), np.uint8)
    sure = np.zeros(len(names))
    numbers = []
    for start, stop in _parts(study):
        ids[start:stop], confidence, seen = run(study.batch(start, stop), ("mask", "confidence", "looks"))
        sure += np.bincount(ids[start:stop].ravel(), confidence.ravel(), len(names))
        numbers.append(seen)
    _require_finite(sure)
    return Prediction(ids, {**measure(study, ids, sure, names), **_unlike(numbers, looks, "mask")})


def classify(
    study: Study, run: ModelCall, names: Sequence[str], looks: Mapping[str, out_of_distribution.Looks]
) -> dict[str, Any]:
    """Run a classifier over a study; the slices of a volume are one case: the mean of their probabilities counts.

    Args:
        study: the image or volume.
        run: the model.
        names: of its classes.
        looks: what the training images looked like, by site.

    Returns:
        Plain data: `class`, its `class_name` and its probability, `confidence`; `probabilities` of every class; `unlike` and
        `warnings` as in `Prediction`.

    Raises:
        ExportError: the model overflows.
    """
    made = [run(study.batch(*part), ("probabilities", "looks")) for part in _parts(study)]
    mean = np.concatenate([probabilities for probabilities, _ in made]).mean(axis=0, dtype=np.float64)
    _require_finite(mean)
    best = int(mean.argmax())
    return {
        "width": study.pixels.shape[3], "height": study.pixels.shape[2], "slices": len(study),
        "class": best, "class_name": names[best], "confidence": round(float(mean[best]), 4),
        "probabilities": [
            {"id": i, "name": name, "probability": round(float(p), 4)}
            for i, (name, p) in enumerate(zip(names, mean, strict=True))
        ],
        **_unlike([seen for _, seen in made], looks, "class"),
    }  # fmt: skip


def _parts(study: Study) -> Iterator[tuple[int, int]]:
    """Slices that run together."""
    step = max(1, min(32, _PIXELS // (study.pixels.shape[2] * study.pixels.shape[3])))
    return ((start, min(start + step, len(study))) for start in range(0, len(study), step))


def _require_finite(values: npt.NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise ExportError("the model's probabilities are not finite numbers: take another precision")


def _unlike(numbers: list[npt.NDArray[Any]], looks: Mapping[str, out_of_distribution.Looks], answer: str) -> dict[str, Any]:
    scored = out_of_distribution.ood_score(np.concatenate(numbers), looks)
    known = {"score": scored[0], "most_like": scored[1], "warn_above": out_of_distribution.WARN} if scored else None
    return {"unlike": known, "warnings": _warnings(scored, answer)}


def _warnings(scored: tuple[float, str] | None, answer: str) -> list[str]:
    if scored is None:
        return ["the model does not say what its training images looked like: nobody checked whether this one is like them"]
    if scored[0] > out_of_distribution.WARN:
        return [
            f"the image looks unlike those of the training sites (score {scored[0]:.2f}, usual up to 1; most like "
            f"{scored[1]}): do not rely on the {answer}"
        ]
    return []
