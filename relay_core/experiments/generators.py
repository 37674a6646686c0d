"""How near a checkpoint's generated images come to the real ones of each site that is on this machine."""

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


def score_generators(
    checkpoint: Checkpoint, run: RunFile, data_root: Path | None, features: Path | None, count: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Frechet and kernel distance, by site, of generated images to the site's training images.

    Args:
        checkpoint: of a relay.
        run: names the sites' images.
        data_root: folder that they lie in; None: the run file's `root_path`.
        features: ONNX file of a feature network, an Inception one for what is known as FID and KID; None: the checkpoint's
            own solver, and the scores are named so.
        count: most images of each kind.
        device: to generate on.

    Raises:
        CheckpointError: no generators.
        DataError: no site that the checkpoint remembers is on this machine.
        ExportError: the feature network cannot be used.
    """
    solver, settings = load_solver(checkpoint, device)
    network = OnnxFeatures(features) if features is not None else SolverFeatures(solver, settings.data.out_range)
    rows = generated_rows(settings, checkpoint, device, count)
    if not rows:
        raise CheckpointError(f"{checkpoint.path}: trained by {checkpoint.meta['strategy']}, which has no generators")
    known = site_data(checkpoint, settings, run, data_root, "train")
    found = {
        name: generator_scores(_real(known[name], count), images, network) for name, images, _, _ in rows if name in known
    }
    if not found:
        raise DataError(f"none of the sites {', '.join(row[0] for row in rows)} is on this machine; give --data-root")
    return found


def _real(data: SiteData, count: int) -> Tensor:
    """Training images in [-1, 1], evenly chosen."""
    wanted = min(count, len(data))
    return data.unit_batch([(2 * i + 1) * len(data) // (2 * wanted) for i in range(wanted)])[0] * 2 - 1


def scores_text(scores: dict[str, dict[str, Any]]) -> str:
    """A Markdown table, a row a site, and what the features are."""
    first = next(iter(scores.values()))
    metrics = [key for key in first if key.startswith(("fid", "kid"))]
    lines = [table_row(["site", "real", "generated", *metrics]), "|---|" + "--:|" * (2 + len(metrics))]
    for site, row in scores.items():
        numbers = [f"{row[metric]:.4g}" for metric in metrics]
        lines.append(table_row([site, str(row["num_real"]), str(row["num_generated"]), *numbers]))
    return "\n".join([*lines, "", f"features: {first['features']}; compare only scores of the same features and numbers"])
