"""Scores of a classifier on one test set: accuracy, F1, area under the curve, and accuracy of whole subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from relay_core.metrics.intervals import intervals


@dataclass
class ClassificationScores:
    """Collects predictions batch by batch; `compute` gives all scores of the test set."""

    num_classes: int
    """Number of classes, 2 or more."""
    _probabilities: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _targets: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _subjects: list[str] = field(default_factory=list, init=False, repr=False)

    def update(self, probabilities: Tensor, target_ids: Tensor, subjects: Sequence[str]) -> None:
        """Add a batch of images.

        Shape: probabilities (N, K), target_ids (N,) in 0 ... K - 1, N subjects. Raises ValueError for other shapes or ids.
        """
        n = len(subjects)
        if probabilities.shape != (n, self.num_classes) or target_ids.shape != (n,):
            shapes = f"{tuple(probabilities.shape)} and {tuple(target_ids.shape)}"
            raise ValueError(f"{n} images need probabilities ({n}, {self.num_classes}) and targets ({n},), not {shapes}")
        if n and not 0 <= int(target_ids.min()) <= int(target_ids.max()) < self.num_classes:
            raise ValueError(f"targets hold ids outside 0 ... {self.num_classes - 1}")
        self._probabilities.append(probabilities.detach().cpu().double())
        self._targets.append(target_ids.detach().cpu().long())
        self._subjects += subjects

    def compute(self) -> dict[str, Any]:
        """Return all scores of the images that were added so far; safe for JSON.

        - `accuracy`, the same as `balanced_accuracy`: mean over the classes of the share of a class's images that were
          found (mean recall; a class without images is left out); `accuracy_images`: share of all images that are right.
        - `f1`: mean over the classes that occur in targets or predictions; `recall_per_class`: None for a class without
          images.
        - `auroc`: mean over the classes of the area under the curve, one class against the others; None where only one
          class occurs.
        - `accuracy_subjects`: share of the subjects whose mean probability is largest for their most frequent class.
        - `ci95`: the 95 % interval of `accuracy_images` over images, and of `accuracy_subjects` over subjects, by `t` and
          by `bootstrap`.
        - `samples`: one entry a subject, in order of arrival.

        Raises ValueError if nothing was added.
        """
        from torchmetrics.functional.classification import multiclass_f1_score, multiclass_recall

        if not self._subjects:
            raise ValueError("no image was scored: the test set is empty")
        probabilities, targets = torch.cat(self._probabilities), torch.cat(self._targets)
        predicted = probabilities.argmax(dim=1)
        right = (predicted == targets).double()
        samples = self._samples(probabilities, targets)
        counts = torch.bincount(targets, minlength=self.num_classes)
        k = self.num_classes
        recall = multiclass_recall(predicted, targets, k, average="none")
        return {
            "num_samples": len(samples),
            "num_images": len(targets),
            "accuracy": (balanced := float(recall[counts > 0].mean())),
            "balanced_accuracy": balanced,
            "accuracy_images": float(right.mean()),
            "accuracy_subjects": sum(s["right"] for s in samples) / len(samples),
            "f1": float(multiclass_f1_score(predicted, targets, k, average="macro")),
            "auroc": _mean_area(probabilities, targets),
            "recall_per_class": [float(r) if n else None for r, n in zip(recall, counts, strict=True)],
            "ci95": {
                "accuracy_images": intervals(right.tolist()),
                "accuracy_subjects": intervals([float(s["right"]) for s in samples]),
            },
            "samples": samples,
        }

    def _samples(self, probabilities: Tensor, targets: Tensor) -> list[dict[str, Any]]:
        positions: dict[str, list[int]] = {}
        for i, subject in enumerate(self._subjects):
            positions.setdefault(subject, []).append(i)
        samples = []
        for subject, index in positions.items():
            mean, classes = probabilities[index].mean(dim=0), torch.bincount(targets[index], minlength=self.num_classes)
            predicted, target = int(mean.argmax()), int(classes.argmax())
            samples.append(
                {
                    "subject": subject, "num_images": len(index), "target": target, "predicted": predicted,
                    "right": predicted == target, "probabilities": [round(float(p), 6) for p in mean],
                }
            )  # fmt: skip
        return samples


def _mean_area(probabilities: Tensor, targets: Tensor) -> float | None:
    """Return the mean area under the ROC curve over the classes that have images; None for fewer than two of them.

    A class without images has no curve.
    """
    from torchmetrics.functional.classification import binary_auroc

    present = targets.unique().tolist()
    if len(present) < 2:
        return None
    return sum(float(binary_auroc(probabilities[:, c], (targets == c).long())) for c in present) / len(present)
