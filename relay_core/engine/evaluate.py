"""Evaluation of a solver on test sets: scores, pictures of predictions, and score matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relay_core.config import SiteSettings
from relay_core.data import SiteData
from relay_core.engine.checkpoint import Checkpoint
from relay_core.errors import CheckpointError
from relay_core.metrics import (
    ClassificationScores,
    ScoreMatrix,
    SegmentationScores,
    metrics_of,
    score_matrices,
    task_of,
)
from relay_core.models import Flipped, make_solver

BATCH = 32


@torch.no_grad()
def predict_logits(solver: nn.Module, data: SiteData, device: torch.device) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield batches of (positions, logits (B, K, R, R) or (B, K), true ids) over a whole data set, on the CPU.

    The solver runs in eval mode.
    """
    training, dtype = solver.training, next(solver.parameters()).dtype
    solver.eval()
    try:
        for start in range(0, len(data), BATCH):
            index = list(range(start, min(start + BATCH, len(data))))
            images, labels = data.batch(index)
            yield index, solver(images.to(device, dtype)).float().cpu(), labels
    finally:
        solver.train(training)


def evaluate(solver: nn.Module, data: SiteData, device: torch.device) -> dict[str, Any]:
    """Return a solver's scores on one test set: see `SegmentationScores.compute` and `ClassificationScores.compute`."""
    if data.task == "classification":
        classes = ClassificationScores(data.num_classes)
        for index, logits, labels in predict_logits(solver, data, device):
            classes.update(logits.softmax(dim=1), labels, [data.subjects[i] for i in index])
        return classes.compute()
    scores = SegmentationScores(data.num_classes, data.groups, data.merged)
    for index, logits, labels in predict_logits(solver, data, device):
        subjects, spacing = [data.subjects[i] for i in index], [data.spacing[i] for i in index]
        scores.update(logits.argmax(dim=1), labels, subjects, spacing)
    return scores.compute()


def settings_of(checkpoint: Checkpoint) -> SiteSettings:
    """Return the settings that a checkpoint was trained with.

    Raises:
        CheckpointError: the settings are not valid in this version.
    """
    try:
        return SiteSettings.model_validate(checkpoint.meta["settings"]).without_pretraining()
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: its settings are not valid in this version: {error}") from None


def load_solver(checkpoint: Checkpoint, device: torch.device, flips: bool = False) -> tuple[nn.Module, SiteSettings]:
    """Return the solver in a checkpoint, in eval mode, and the settings that it was trained with.

    Args:
        checkpoint: the checkpoint.
        device: where the solver is to run.
        flips: whether it answers by the mean over the four flips of an image, see `Flipped`.

    Raises:
        CheckpointError: the checkpoint's settings are not valid in this version, or its tensors do not fit them.
    """
    settings = settings_of(checkpoint)
    solver = make_solver(settings.solver, settings.data.task, settings.resolution)
    try:
        solver.load_state_dict(checkpoint.network("solver"))
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path}: the solver does not fit its settings: {error}") from None
    return (Flipped(solver) if flips else solver).to(device).eval(), settings


def prediction_rows(
    solver: nn.Module,
    tests: dict[str, SiteData],
    device: torch.device,
    count: int = 6,
    scores: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """Return `count` images of each test set with labels and predictions, as rows for `write_picture`.

    They are the first ones, or, where `scores` by test set are given, the worst, the worst of all first. A row is
    (name, images in [-1, 1], labels, predictions).
    """
    rows = []
    for name, data in tests.items():
        chosen = _worst_first(data, scores[name]["samples"]) if scores is not None else range(len(data))
        images, labels = data.batch(list(chosen)[:count])
        with torch.no_grad():
            predicted = solver(images.to(device)).argmax(dim=1).cpu()
        low, high = images.min(), images.max()
        images = images if low >= -1 and high <= 1 else (images - low) / (high - low) * 2 - 1
        rows.append((name, images, labels, predicted))
    return rows


def _worst_first(data: SiteData, samples: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the position of one image of each scored subject: those of the lowest Dice first, or those taken for wrong."""
    first = {subject: i for i, subject in reversed(list(enumerate(data.subjects)))}
    key = "dice" if samples and "dice" in samples[0] else "right"
    ranked = sorted(samples, key=lambda sample: -1.0 if sample[key] is None else float(sample[key]))
    return [first[sample["subject"]] for sample in ranked]


def write_picture(rows: Sequence[tuple[str, Tensor, Tensor, Tensor | None]], path: Path, num_classes: int) -> None:
    """Write a grid of images, labels and predictions as PNG; a classification's classes stand in the captions."""
    from relay_core.metrics import sample_grid

    side = rows[0][1].shape[-1]
    shown = [_in_caption(row) if row[2].ndim == 1 else row for row in rows]
    sample_grid(shown, path, num_classes, scale=max(1, round(96 / side)))


def _in_caption(row: tuple[str, Tensor, Tensor, Tensor | None]) -> tuple[str, Tensor, None, None]:
    """Return a row of a classification with its labels and predictions moved into the caption."""
    name, images, labels, predicted = row
    caption = f"{name}: class {' '.join(map(str, labels.tolist()))}"
    return (
        caption + (f", predicted {' '.join(map(str, predicted.tolist()))}" if predicted is not None else ""),
        images,
        None,
        None,
    )


def write_matrices(
    rows: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    folder: Path,
    start: Mapping[str, Any] | None = None,
    sequential: bool = True,
    *,
    draw: bool = True,
) -> dict[str, ScoreMatrix]:
    """Write each metric's site x test-set matrix (JSON, CSV, Markdown, heat map) and return them by metric.

    Args:
        rows: for each site, the scores of the model after training there, by test site, as `evaluate` returns them.
        names: the test sites, in the order of the columns.
        folder: the folder to write to.
        start: scores of the untrained model by test site, if they are known.
        sequential: whether each row's model grew out of the one above.
        draw: whether to draw the heat maps, which take longer than all the rest.
    """
    from relay_core.metrics import write_matrix  # draws, by matplotlib

    first = next(iter(next(iter(rows.values())).values()))
    matrices = score_matrices(rows, names, task_of(first), start, sequential)
    lengths = [metric.name for metric in metrics_of(task_of(first)) if metric.unit_key]
    for stale in {f"{name}{unit}" for name in lengths for unit in ("", "_mm", "_px")} - matrices.keys():
        for path in folder.glob(f"{stale}.*"):  # of an earlier call, when the test sets had other units
            path.unlink()
    for key, matrix in matrices.items():
        write_matrix(matrix, folder, key, draw=draw)
    return matrices
