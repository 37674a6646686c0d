"""Scores of a replay: how well a checkpoint's generated images and label maps stand for a site's real ones, here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relay_core.config import RunFile
from relay_core.data import SiteData
from relay_core.engine import BATCH, Checkpoint, generated_rows, load_solver, site_data
from relay_core.errors import CheckpointError, DataError
from relay_core.experiments.report import DASH
from relay_core.metrics import OnnxFeatures, SolverFeatures, agreement, generator_scores, map_scores, scored_as, table_row
from relay_core.replay import resize_images, resize_labels
from relay_core.texts import markdown


def score_generators(
    checkpoint: Checkpoint, run: RunFile, data_root: Path | None, features: Path | None, count: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Return how a replay compares with a site's training images, by site; see `relay_core.metrics.replay` for the terms.

    Frechet and kernel distance, precision, recall, density and coverage of the images' features; for segmentation also
    `maps` and `real_maps`, variety and shapes of label maps, and `agreement` of the checkpoint's own solver with the maps.

    Args:
        checkpoint: a checkpoint of a strategy with generators.
        run: the run file that names the sites' images.
        data_root: the folder that the images lie in; None takes the run file's `root_path`.
        features: ONNX file of a feature network, an Inception one for what is known as FID and KID; None takes the
            checkpoint's own solver, and the scores are named so.
        count: most real and most generated images of each site.
        device: the device to generate on.

    Raises:
        CheckpointError: the checkpoint has no generators.
        DataError: no site that the checkpoint remembers is on this machine.
        ExportError: the feature network cannot be used.
    """
    solver, settings = load_solver(checkpoint, device)
    network = OnnxFeatures(features) if features is not None else SolverFeatures(solver, settings.data.out_range)
    rows = generated_rows(settings, checkpoint, device, count)
    if not rows:
        raise CheckpointError(f"{checkpoint.path}: trained by {checkpoint.meta['strategy']}, which has no generators")
    real_sets = site_data(checkpoint, settings, run, data_root, "train")
    scores: dict[str, dict[str, Any]] = {}
    classes, solver_side = settings.data.num_classes, settings.resolution
    for name, images, maps, _ in rows:
        if name not in real_sets:
            continue
        drawn, side = resize_images(images, solver_side), images.shape[-1]
        data = real_sets[name]
        real, real_maps = real_images(data, count)
        real = resize_images(resize_images(real, side), solver_side)
        scores[name] = generator_scores(real, drawn, network)
        if maps.ndim > 1:
            told = scored_as(classes, data.groups, data.merged)  # of the classes that the site's labels tell apart
            told_maps, real_maps = told[maps], resize_labels(told[real_maps], side, classes)
            answers = told[_answers(solver, drawn, settings.data.out_range)]
            scores[name] |= {
                "agreement": agreement(answers, resize_labels(told_maps, solver_side, classes), classes),
                "maps": map_scores(told_maps, classes),
                "real_maps": map_scores(real_maps, classes),
            }
    if not scores:
        raise DataError(f"none of the sites {', '.join(row[0] for row in rows)} is on this machine; give --data-root")
    return scores


def with_nearest(
    rows: list[Any], checkpoint: Checkpoint, run: RunFile, data_root: Path | None, device: torch.device
) -> list[Any]:
    """Return the rows of `generated_rows`, each followed by one of the training images nearest to its images.

    Nearest in the features of the checkpoint's own solver, at the generators' size. These are patients' images: a picture of
    them is for the site's own eyes. A site whose images are not on this machine has no such row.

    Raises:
        DataError: no site that the checkpoint remembers is on this machine.
    """
    solver, settings = load_solver(checkpoint, device)
    network = SolverFeatures(solver, settings.data.out_range)
    real_sets = site_data(checkpoint, settings, run, data_root, "train")
    result: list[Any] = []
    for row in rows:
        name, images, _, _ = row
        result.append(row)
        if name not in real_sets:
            continue
        real, labels = real_images(real_sets[name], len(real_sets[name]))
        side = images.shape[-1]
        if labels.ndim > 1:
            labels = scored_as(settings.data.num_classes, settings.data.groups, ())[labels]
        real, labels = resize_images(real, side), resize_labels(labels, side, settings.data.num_classes)
        features = [
            torch.cat([network(resize_images(part, settings.resolution)).cpu() for part in each.split(BATCH)])
            for each in (images, real)
        ]
        nearest = torch.cdist(features[0], features[1]).argmin(dim=1)
        result.append((f"{name}: nearest training image", real[nearest], labels[nearest], None))
    if len(result) == len(rows):
        raise DataError(f"none of the sites {', '.join(row[0] for row in rows)} is on this machine; give --data-root")
    return result


@torch.no_grad()
def _answers(solver: nn.Module, images: Tensor, out_range: tuple[float, float]) -> Tensor:
    """Return the class ids (N, R, R) that a solver gives to images (N, C, R, R) in [-1, 1], on the CPU."""
    low, high = out_range
    first = next(solver.parameters())
    batches = ((part + 1) * ((high - low) / 2) + low for part in images.split(BATCH))
    return torch.cat([solver(part.to(first.device, first.dtype)).argmax(dim=1).cpu() for part in batches])


def real_images(data: SiteData, count: int) -> tuple[Tensor, Tensor]:
    """Return at most `count` training images, evenly chosen, with values in [-1, 1], and their labels."""
    number = min(count, len(data))
    images, labels = data.unit_batch([(2 * i + 1) * len(data) // (2 * number) for i in range(number)])
    return images * 2 - 1, labels


def scores_text(scores: dict[str, dict[str, Any]]) -> str:
    """Return the scores as Markdown: a table of images, one of label maps beside the real ones, and what they say."""
    first = next(iter(scores.values()))
    metrics = [key for key in first if key.startswith(("fid", "kid"))] + list(_IMAGES)
    lines = [table_row(["site", "real", "generated", *metrics]), "|---|" + "--:|" * (2 + len(metrics))]
    for site, row in scores.items():
        numbers = [f"{row[metric]:.4g}" for metric in metrics]
        lines.append(table_row([markdown(site), str(row["num_real"]), str(row["num_generated"]), *numbers]))
    lines += ["", f"features: {first['features']}; compare only scores of the same features and numbers"]
    return "\n".join(lines + (_map_lines(scores) if "maps" in first else []))


_IMAGES = ("precision", "recall", "density", "coverage")
_MAPS = ("present", "area", "area_spread", "pieces", "raggedness")


def _map_lines(scores: dict[str, dict[str, Any]]) -> list[str]:
    """A table of label maps: generated ones, and in brackets the real ones."""
    lines = ["", table_row(["site", "agreement", "pairwise Dice", "class", *(name.replace("_", " ") for name in _MAPS)])]
    lines += ["|---|--:|--:|--:|" + "--:|" * len(_MAPS)]
    for site, row in scores.items():
        made, real = row["maps"], row["real_maps"]
        for i in range(len(made["present"])):
            whole = (
                [f"{row['agreement']:.3f}", _beside(made["pairwise_dice"], real["pairwise_dice"])] if i == 0 else ["", ""]
            )
            cells = [_beside(made[name][i], real[name][i]) for name in _MAPS]
            lines.append(table_row([markdown(site) if i == 0 else "", *whole, str(i + 1), *cells]))
    return [*lines, "", "in brackets: the real maps; agreement: Dice of this checkpoint's solver with the map of an image"]


def _beside(made: float | None, real: float | None) -> str:
    one, other = (DASH if value is None else f"{value:.3f}" for value in (made, real))
    return f"{one} ({other})"
