"""Predict the mask or the class of a study, with measurements and warnings, whatever runs the network.

Legend: S slices, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from relay_core.errors import ExportError
from relay_core.imaging import Study, out_of_distribution
from relay_core.inference.measurements import measure, significant
from relay_core.inference.resolution import ModelCall

_PIXELS = 1 << 22
"""Most pixels in the slices that run together."""


@dataclass(frozen=True)
class Prediction:
    """The mask that a model predicts for a study, and what was measured in it."""

    ids: npt.NDArray[np.uint8]
    """Class ids (S, H, W)."""
    found: dict[str, Any]
    """Result of `measure`, with `unlike` ({score, most_like, warn_above} or None) and `warnings` (a list of sentences)."""

    @property
    def unlike(self) -> float | None:
        """The out-of-distribution score; None where the model has no feature statistics to compare with."""
        ood = self.found["unlike"]
        return ood["score"] if ood else None


def predict(
    study: Study, run: ModelCall, names: Sequence[str], looks: Mapping[str, out_of_distribution.Looks]
) -> Prediction:
    """Run a model over a study, slice by slice.

    Args:
        study: the image or volume.
        run: the model.
        names: names of its classes, the background first.
        looks: feature statistics of the training images, by site.

    Raises:
        ExportError: the model overflows: its probabilities are not finite.
    """
    height, width = study.pixels.shape[2:]
    ids = np.empty((len(study), height, width), np.uint8)
    confidence_sums = np.zeros(len(names))
    features = []
    for start, stop in _batch_ranges(study):
        ids[start:stop], confidence, batch_features = run(study.batch(start, stop), ("mask", "confidence", "looks"))
        confidence_sums += np.bincount(ids[start:stop].ravel(), confidence.ravel(), len(names))
        features.append(batch_features)
    _require_finite(confidence_sums)
    return Prediction(ids, {**measure(study, ids, confidence_sums, names), **_ood_entries(features, looks, "mask")})


def classify(
    study: Study, run: ModelCall, names: Sequence[str], looks: Mapping[str, out_of_distribution.Looks]
) -> dict[str, Any]:
    """Run a classifier over a study; a volume is one case, whose probabilities are the mean of its slices'.

    Args:
        study: the image or volume.
        run: the model.
        names: names of its classes.
        looks: feature statistics of the training images, by site.

    Returns:
        Plain data: `width`, `height` and `slices` of the study; `class`, the most probable class, its `class_name` and its
        probability, `confidence`; `probabilities` of every class; `unlike` and `warnings` as in `Prediction`.

    Raises:
        ExportError: the model overflows: its probabilities are not finite.
    """
    batches = [run(study.batch(*batch_range), ("probabilities", "looks")) for batch_range in _batch_ranges(study)]
    mean = np.concatenate([probabilities for probabilities, _ in batches]).mean(axis=0, dtype=np.float64)
    _require_finite(mean)
    best = int(mean.argmax())
    return {
        "width": study.pixels.shape[3], "height": study.pixels.shape[2], "slices": len(study),
        "class": best, "class_name": names[best], "confidence": significant(mean[best], 4),
        "probabilities": [
            {"id": i, "name": name, "probability": significant(p, 4)}
            for i, (name, p) in enumerate(zip(names, mean, strict=True))
        ],
        **_ood_entries([features for _, features in batches], looks, "class"),
    }  # fmt: skip


def _batch_ranges(study: Study) -> Iterator[tuple[int, int]]:
    """Return the start and the end of each batch of slices that run together."""
    step = max(1, min(32, _PIXELS // (study.pixels.shape[2] * study.pixels.shape[3])))
    return ((start, min(start + step, len(study))) for start in range(0, len(study), step))


def _require_finite(values: npt.NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise ExportError("the model's probabilities are not finite numbers: take another precision")


def _ood_entries(
    features: list[npt.NDArray[Any]], looks: Mapping[str, out_of_distribution.Looks], answer: str
) -> dict[str, Any]:
    """Return the entries `unlike` and `warnings` of a result; `answer` is what a warning calls the result."""
    score_and_site = out_of_distribution.ood_score(np.concatenate(features), looks)
    ood = (
        {"score": score_and_site[0], "most_like": score_and_site[1], "warn_above": out_of_distribution.WARN}
        if score_and_site
        else None
    )
    return {"unlike": ood, "warnings": _warnings(score_and_site, answer)}


def _warnings(score_and_site: tuple[float, str] | None, answer: str) -> list[str]:
    if score_and_site is None:
        return ["the model does not say what its training images looked like: nobody checked whether this one is like them"]
    if score_and_site[0] > out_of_distribution.WARN:
        return [
            f"the image looks unlike those of the training sites (score {score_and_site[0]:.2f}, usual up to 1; most like "
            f"{score_and_site[1]}): do not rely on the {answer}"
        ]
    return []
