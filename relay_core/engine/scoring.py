"""Evaluation of a checkpoint on the test sets of a run that are on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from relay_core.config import RunFile, SiteSettings
from relay_core.data import SiteData, Split, has_test, load_site
from relay_core.engine.checkpoint import Checkpoint
from relay_core.engine.evaluate import (
    evaluate,
    load_solver,
    prediction_rows,
    write_matrices,
    write_picture,
)
from relay_core.errors import DataError, RunFileError
from relay_core.files import write_atomically


def evaluate_checkpoint(
    checkpoint: Checkpoint, run: RunFile, data_root: Path | None, device: torch.device, out: Path | None
) -> tuple[dict[str, Any], list[Path]]:
    """Score a checkpoint's solver on every test set of the run that is on this machine.

    With `out`, `scores.json`, `predictions.png` and the matrices are written there. Returns the scores by test site, and the
    files written.

    Raises:
        DataError: none of the run's test sets is on this machine.
        RunFileError: the run has other classes or channels.
    """
    solver, trained = load_solver(checkpoint, device)
    tests = site_data(checkpoint, trained, run, data_root, "test")
    if not tests:
        raise DataError(f"none of the image folders of {run.path} is on this machine; give --data-root")
    scores = {name: evaluate(solver, data, device) for name, data in tests.items()}
    if out is None:
        return scores, []
    written = [out / "scores.json", out / "predictions.png"]
    write_atomically(written[0], json.dumps({"checkpoint": checkpoint.digest, "scores": scores}, indent=1).encode())
    write_picture(prediction_rows(solver, tests, device), written[1], trained.data.num_classes)
    write_matrices({str(checkpoint.meta["site"]): scores}, list(scores), out / "evaluation")
    return scores, [*written, *sorted((out / "evaluation").iterdir())]


def site_data(
    checkpoint: Checkpoint, trained: SiteSettings, run: RunFile, data_root: Path | None, split: Split
) -> dict[str, SiteData]:
    """Load the training or test images of every site of a run that are on this machine, at the solver's resolution.

    Raises:
        RunFileError: the run has other classes or channels than the checkpoint.
    """
    sites: dict[str, SiteData] = {}
    for settings in (run.site(i) for i in run.all_ids):
        folder = settings.data_folder(data_root, run.base)
        expected, actual = ((d.img_channels, d.num_classes, d.task) for d in (trained.data, settings.data))
        if expected != actual:
            raise RunFileError(
                f"{checkpoint.path} was trained on {expected[0]} channels and {expected[1]} classes ({expected[2]}), "
                f"site {settings.name} of {run.path} has {actual[0]} and {actual[1]} ({actual[2]})"
            )
        if folder.is_dir() and (split == "train" or has_test(settings.dataset.name, settings.data, folder)):
            sites[settings.name] = load_site(
                settings.dataset.name, settings.data, folder=folder, split=split, resolution=trained.resolution
            )
    return sites
