"""Scores of generators: how near a checkpoint's generated images come to the real ones of each site on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relay_core.config import RunFile
from relay_core.data import SiteData
from relay_core.engine import Checkpoint, generated_rows, load_solver, site_data
from relay_core.errors import CheckpointError, DataError
from relay_core.metrics import OnnxFeatures, SolverFeatures, generator_scores, table_row
from relay_core.texts import markdown


def score_generators(
    checkpoint: Checkpoint, run: RunFile, data_root: Path | None, features: Path | None, count: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Return the Frechet and kernel distance of generated images to a site's training images, by site.

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
    scores = {
        name: generator_scores(_real(real_sets[name], count), images, network)
        for name, images, _, _ in rows
        if name in real_sets
    }
    if not scores:
        raise DataError(f"none of the sites {', '.join(row[0] for row in rows)} is on this machine; give --data-root")
    return scores


def _real(data: SiteData, count: int) -> Tensor:
    """Return at most `count` training images, evenly chosen, with values in [-1, 1]."""
    number = min(count, len(data))
    return data.unit_batch([(2 * i + 1) * len(data) // (2 * number) for i in range(number)])[0] * 2 - 1


def scores_text(scores: dict[str, dict[str, Any]]) -> str:
    """Return the scores as a Markdown table with one row a site, and a line that names the features."""
    first = next(iter(scores.values()))
    metrics = [key for key in first if key.startswith(("fid", "kid"))]
    lines = [table_row(["site", "real", "generated", *metrics]), "|---|" + "--:|" * (2 + len(metrics))]
    for site, row in scores.items():
        numbers = [f"{row[metric]:.4g}" for metric in metrics]
        lines.append(table_row([markdown(site), str(row["num_real"]), str(row["num_generated"]), *numbers]))
    return "\n".join([*lines, "", f"features: {first['features']}; compare only scores of the same features and numbers"])
