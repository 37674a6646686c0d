"""The registry of metrics: each with its name, its unit, and whether higher or lower is better. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relay_core.config import Task

SEGMENTATION: tuple[Task, ...] = ("segmentation",)
CLASSIFICATION: tuple[Task, ...] = ("classification",)


@dataclass(frozen=True)
class Metric:
    """One score of a model on a test set."""

    name: str
    """Its key in `scores.json`, in bundles, and in the names of matrix files."""
    tasks: tuple[Task, ...]
    """Tasks whose solvers are scored with this metric."""
    title: str
    """Its name in tables and figures."""
    averaged: str
    """How it is averaged over classes, images and subjects, for people to read."""
    short: str = ""
    """Its name where there is room for only one or two words; empty: `title`."""
    unit_key: str | None = None
    """Key in a test set's scores that holds the unit of a length; None: the value is a share of 1, which has no unit."""
    higher_is_better: bool = True
    decimals: int = 3
    """Digits after the decimal point that people are shown."""
    smallest_range: float = 0.1
    """Least width of a colour scale, in the metric's unit, so that noise does not look like a difference."""

    def unit(self, scores: Mapping[str, Any]) -> str:
        """Return the unit of the value in a test set's scores, such as "mm"; empty for a share of 1."""
        return str(scores.get(self.unit_key) or "") if self.unit_key else ""

    def text(self, value: float | None, signed: bool = False) -> str:
        """Return a value as text for people; a dash where it is missing."""
        if value is None:
            return "\N{EN DASH}"
        return f"{value:{'+' if signed else ''}.{self.decimals}f}".replace("-", "\N{MINUS SIGN}")


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "dice_per_sample", SEGMENTATION, "Dice (per sample)",
            "Dice of each sample (a subject's slices together), mean of the foreground classes, then of samples; 1 for a "
            "class that is in neither", short="Dice",
        ),
        Metric(
            "dice", SEGMENTATION, "Dice (all pixels)",
            "Dice over all pixels of the test set at once, mean of the foreground classes, and of each class",
        ),
        Metric(
            "hd95", SEGMENTATION, "95 % Hausdorff distance",
            "95 % Hausdorff distance, mean of the foreground classes and of subjects; mm where the spacing is known, else "
            "pixels, and the two are never averaged together; 0 if both are empty, 100 if one is",
            short="HD95", unit_key="hd95_unit", higher_is_better=False, decimals=2, smallest_range=2.0,
        ),
        Metric(
            "accuracy", SEGMENTATION + CLASSIFICATION, "Balanced accuracy (mean recall)",
            "balanced accuracy: mean over the classes of the share of a class's pixels (images) that were found; also under "
            "the key `balanced_accuracy`", short="balanced accuracy",
        ),
        Metric("accuracy_images", CLASSIFICATION, "Accuracy (images)", "share of the images that are right"),
        Metric(
            "accuracy_subjects", CLASSIFICATION, "Accuracy (subjects)",
            "share of the subjects whose mean probability is largest for their class",
        ),
        Metric("f1", CLASSIFICATION, "F1 (macro)", "mean over the classes of the harmonic mean of precision and recall"),
        Metric(
            "auroc", CLASSIFICATION, "Area under the ROC curve",
            "area under the ROC curve, each class against the others, mean over the classes",
        ),
    )
}  # fmt: skip
"""The metrics by name, in the order in which they are shown."""
WITHHELD = "withheld"
"""Key of a test set's scores in bundles and reports: they are None, as fewer patients than this stand behind them."""
_MAIN: dict[Task, str] = {"segmentation": "dice_per_sample", "classification": "accuracy"}


def metrics_of(task: Task) -> tuple[Metric, ...]:
    """Return the metrics of a task, its main one first: the one that is shown where there is room for one."""
    main = METRICS[_MAIN[task]]
    return (main, *(metric for metric in METRICS.values() if task in metric.tasks and metric is not main))


def task_of(scores: Mapping[str, Any]) -> Task:
    """Return the task that a test set's scores belong to."""
    return "segmentation" if _MAIN["segmentation"] in scores else "classification"


def headline(scores: Mapping[str, Any]) -> tuple[str, float | None]:
    """Return the short name and the value of the one score of a test set that is shown where there is room for one."""
    main = metrics_of(task_of(scores))[0]
    return main.short, scores.get(main.name)


def headlines(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the one score of each test set of a bundle's hop as text, such as "Dice North 0.912, Dice South withheld"."""
    texts = []
    for name, row in scores.items():
        metric, value = headline(row)
        if value is not None or is_withheld(row):
            texts.append(f"{metric} {name} {'withheld' if value is None else f'{value:.3f}'}")
    return ", ".join(texts) or "no scores"


def is_withheld(scores: Mapping[str, Any]) -> bool:
    """Return whether a test set's scores did not leave their site, as few patients stand behind them."""
    return scores.get(WITHHELD) is not None
