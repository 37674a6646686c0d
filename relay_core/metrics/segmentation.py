"""Scores of one model on one test set: accuracy, Dice and 95 % Hausdorff distance.

Class 0 is the background; the foreground is 1 ... num_classes - 1. A *sample* is one subject: the slices that share
a subject's name are one 3-D stack, and normally a stack is a single image.
torchmetrics loads on first use: it takes seconds, and most commands score nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor

from relay_core.metrics.intervals import intervals

EMPTY_DISTANCE = 100.0
"""The 95 % Hausdorff distance, in either unit, where a class is in only one of prediction and target."""


def hausdorff95(prediction: np.ndarray, target: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)) -> float:
    """Return the 95 % Hausdorff distance of two masks: the larger of the two directed 95 % quantiles.

    A surface is the mask's border pixels: those with a 4-neighbour outside the mask or outside the image. This is
    not torchmetrics' HausdorffDistance, which takes the maximum and, given a spacing, another surface.

    Shape: both (H, W) bool. `spacing` is the (row, column) distance of pixel centres; the result is in its unit:
    0 if both masks are empty, 100 if one is.
    """
    if not prediction.any() and not target.any():
        return 0.0
    if not prediction.any() or not target.any():
        return EMPTY_DISTANCE
    box = _bounding_box(prediction | target)
    surfaces = [mask[box] & ~binary_erosion(mask[box]) for mask in (prediction, target)]
    to_surface = [np.asarray(distance_transform_edt(~surface, sampling=spacing)) for surface in surfaces]
    return float(max(np.quantile(to_surface[1 - i][surfaces[i]], 0.95) for i in (0, 1)))


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


@dataclass
class _Sample:
    """The running scores of one subject: integer counts, and a distance for each slice where a class occurs."""

    confusion: np.ndarray  # (C, C): rows target, columns prediction
    pixels: list[list[float]]  # distances: one list for each foreground class
    millimetres: list[list[float]]
    slices: int = 0

    def dice(self) -> np.ndarray:
        return np.nan_to_num(dice_by_class(self.confusion), nan=1.0)

    def hd95(self, unit: str) -> np.ndarray:
        per_class = self.millimetres if unit == "mm" else self.pixels
        return np.asarray([np.mean(values) if values else 0.0 for values in per_class])


def dice_by_class(confusion: np.ndarray) -> np.ndarray:
    """Return the foreground Dice (C - 1,) of a confusion matrix (C, C); NaN where a class is in neither."""
    size = (confusion.sum(axis=0) + confusion.sum(axis=1))[1:]
    overlap = 2.0 * np.diagonal(confusion)[1:]
    return np.divide(overlap, size, out=np.full(size.shape, np.nan), where=size > 0)


def scored_as(num_classes: int, groups: Sequence[Sequence[int]], merged: Sequence[Sequence[int]]) -> Tensor:
    """Return the class (num_classes + len(groups),) that each id is scored as, see `SegmentationScores`."""
    table = torch.arange(num_classes + len(groups))
    for i, members in enumerate(groups):
        table[num_classes + i] = members[0]
    for members in merged:
        table[list(members)] = members[0]
    return table


@dataclass
class SegmentationScores:
    """Collects predictions batch by batch; `compute` gives all scores of the test set.

    Needs little memory: each image is reduced to counts and distances when it arrives. A subject's slices may come
    in several batches and in any order.
    """

    num_classes: int
    """Number of classes with the background, 2 or more."""
    groups: Sequence[Sequence[int]] = ()
    """Groups of classes that are not told apart; id `num_classes + i` in a target stands for any class of group i."""
    merged: Sequence[Sequence[int]] = ()
    """Those of the groups that are scored as one class, their first, because the targets do not tell them apart."""
    _samples: dict[str, _Sample] = field(default_factory=dict, init=False, repr=False)
    _all_spaced: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"num_classes counts the background too and is at least 2, not {self.num_classes}")
        from torchmetrics.classification import MulticlassAccuracy

        foreground = np.arange(1, self.num_classes)
        self._scored = ~np.isin(foreground, [c for members in self.merged for c in members[1:]])
        self._accuracy = MulticlassAccuracy(self.num_classes, average="macro", validate_args=False, sync_on_compute=False)

    def update(
        self,
        pred_ids: Tensor,
        target_ids: Tensor,
        subjects: Sequence[str],
        spacing: Sequence[tuple[float, float] | None],
    ) -> None:
        """Add a batch of images.

        Shape: pred_ids and target_ids (N, H, W), integer class ids 0 ... num_classes - 1, in the target ids of `groups`
        too, any device; `subjects` and `spacing` N each. A spacing is (row, column) in mm, or None where the image says
        nothing of it. Raises ValueError, before anything is counted, for another shape, type, length, id or spacing.
        """
        self._check(pred_ids, target_ids, subjects, spacing)
        table = scored_as(self.num_classes, self.groups, self.merged)
        predictions, targets = (table[ids.detach().cpu().long()] for ids in (pred_ids, target_ids))
        self._accuracy.update(predictions.flatten(), targets.flatten())
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        for prediction, target, subject, millimetres in zip(predictions, targets, subjects, spacing, strict=True):
            sample = self._samples.setdefault(subject, self._new_sample())
            confusion = multiclass_confusion_matrix(prediction, target, self.num_classes, validate_args=False)
            sample.confusion += confusion.numpy()
            sample.slices += 1
            self._add_distances(sample, prediction.numpy(), target.numpy(), millimetres)

    def compute(self) -> dict[str, Any]:
        """Return all scores of the images added so far; safe for JSON. Lists per class hold the foreground, class 1 first.

        - `accuracy`, the same as `balanced_accuracy`: mean over the classes of the share of a class's pixels that were
          found (mean recall); a class that is in neither prediction nor target of the whole set is left out.
        - `dice`, `dice_per_class`: over all pixels of the set at once; a class that is in neither is None and
          left out of the mean (None if there is no foreground at all).
        - `dice_per_sample`: mean over the samples of their `dice`, which is the mean over the foreground classes; 1 for
          a class that is in neither prediction nor target of the sample.
        - `hd95`: as `dice_per_sample`, of `hausdorff95`. Slices of a stack are measured in their plane, and averaged
          over those where the class occurs in prediction or target; 0 if there is none.
        - `hd95_unit`: "mm" if every image had a spacing, else "px" for all.
        - `ci95`: for both means the 95 % interval over the samples, by `t` and by `bootstrap` (5,000 draws); None for
          a single sample.
        - `samples`: one entry a subject, in order of arrival.

        Of classes that are scored as one (`merged`) the first has the scores; the others have None and are in no mean.

        Raises ValueError if nothing was added.
        """
        if not self._samples:
            raise ValueError("no image was scored: the test set is empty")
        unit = "mm" if self._all_spaced else "px"
        samples = [_sample_entry(name, sample, unit, self._scored) for name, sample in self._samples.items()]
        dices, distances = ([entry[key] for entry in samples] for key in ("dice", "hd95"))
        overall = dice_by_class(np.sum([sample.confusion for sample in self._samples.values()], axis=0))
        occurring = overall[~np.isnan(overall)]
        return {
            "num_samples": len(samples),
            "num_images": sum(sample.slices for sample in self._samples.values()),
            "accuracy": (balanced := float(self._accuracy.compute())),
            "balanced_accuracy": balanced,
            "dice": float(occurring.mean()) if occurring.size else None,
            "dice_per_class": [None if np.isnan(value) else float(value) for value in overall],
            "dice_per_sample": float(np.mean(dices)),
            "hd95": float(np.mean(distances)),
            "hd95_unit": unit,
            "ci95": {"dice_per_sample": intervals(dices), "hd95": intervals(distances)},
            "samples": samples,
        }

    def _new_sample(self) -> _Sample:
        foreground = range(1, self.num_classes)
        confusion = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)
        return _Sample(confusion, [[] for _ in foreground], [[] for _ in foreground])

    def _add_distances(
        self, sample: _Sample, prediction: np.ndarray, target: np.ndarray, spacing: tuple[float, float] | None
    ) -> None:
        self._all_spaced &= spacing is not None
        for index in range(self.num_classes - 1):
            predicted_mask, target_mask = prediction == index + 1, target == index + 1
            if not predicted_mask.any() and not target_mask.any():
                continue
            sample.pixels[index].append(hausdorff95(predicted_mask, target_mask))
            if spacing is not None:
                sample.millimetres[index].append(hausdorff95(predicted_mask, target_mask, spacing))

    def _check(
        self,
        pred_ids: Tensor,
        target_ids: Tensor,
        subjects: Sequence[str],
        spacing: Sequence[tuple[float, float] | None],
    ) -> None:
        if pred_ids.ndim != 3 or pred_ids.shape != target_ids.shape:
            raise ValueError(
                f"predictions and targets must both be (N, H, W), not {tuple(pred_ids.shape)} and {tuple(target_ids.shape)}"
            )
        if not len(subjects) == len(spacing) == len(pred_ids):
            raise ValueError(f"{len(pred_ids)} images came with {len(subjects)} subjects and {len(spacing)} spacings")
        for name, ids, more in (("predictions", pred_ids, 0), ("targets", target_ids, len(self.groups))):
            if ids.is_floating_point() or ids.is_complex():
                raise ValueError(f"{name} must be integer class ids, not {ids.dtype}")
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_classes + more:
                raise ValueError(
                    f"{name} hold ids {int(ids.min())} ... {int(ids.max())}, outside 0 ... {self.num_classes + more - 1}"
                )
        for pair in spacing:
            if pair is not None and not (len(pair) == 2 and all(0 < step < np.inf for step in pair)):
                raise ValueError("a spacing is two positive lengths in mm (row, column), or None")


def _sample_entry(name: str, sample: _Sample, unit: str, scored: np.ndarray) -> dict[str, Any]:
    dice, hd95 = sample.dice(), sample.hd95(unit)
    per_class = {
        key: [value if counts else None for value, counts in zip(values.tolist(), scored, strict=True)]
        for key, values in (("dice_per_class", dice), ("hd95_per_class", hd95))
    }
    return {
        "subject": name,
        "num_images": sample.slices,
        "dice": float(dice[scored].mean()),
        "hd95": float(hd95[scored].mean()),
        **per_class,
    }
