"""A checkpoint scored on the test sets of a run that are on this machine."""

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
    """Scores of a checkpoint's solver by test site, for every test set of the run that is on this machine.

    With `out`, `scores.json` and `predictions.png` are written there; returns the scores and the files written.

    Raises:
        DataError: none of them is.
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
    """The training or test images of every site of a run that are on this machine, as a checkpoint's solver wants them.

    Raises:
        RunFileError: the run has other classes or channels.
    """
    sites: dict[str, SiteData] = {}
    for settings in (run.site(i) for i in run.all_ids):
        folder = settings.data_folder(data_root, run.base)
        wanted, found = ((d.img_channels, d.num_classes, d.task) for d in (trained.data, settings.data))
        if wanted != found:
            raise RunFileError(
                f"{checkpoint.path} was trained on {wanted[0]} channels and {wanted[1]} classes ({wanted[2]}), "
                f"site {settings.name} of {run.path} has {found[0]} and {found[1]} ({found[2]})"
            )
        if folder.is_dir() and (split == "train" or has_test(settings.dataset.name, settings.data, folder)):
            sites[settings.name] = load_site(
                settings.dataset.name, settings.data, folder=folder, split=split, resolution=trained.resolution
            )
    return sites
