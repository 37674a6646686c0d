"""Evaluation of a checkpoint on the test sets of a run that are on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
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

SCORES = "scores.json"
"""Name of the file of a site's scores."""


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    run: RunFile,
    data_root: Path | None,
    device: torch.device,
    out: Path | None,
    flips: bool = False,
) -> tuple[dict[str, Any], list[Path]]:
    """Score a checkpoint's solver on every test set of the run that is on this machine.

    With `out`, `scores.json`, `predictions.png`, `worst.png` and the matrices are written there. With `flips` the answers
    are means over the four flips of each image. Returns the scores by test site, and the files written.

    Raises:
        DataError: none of the run's test sets is on this machine.
        RunFileError: the run has other classes or channels.
    """
    solver, trained = load_solver(checkpoint, device, flips)
    tests = site_data(checkpoint, trained, run, data_root, "test")
    if not tests:
        raise DataError(f"none of the image folders of {run.path} is on this machine; give --data-root")
    scores = {name: evaluate(solver, data, device) for name, data in tests.items()}
    if out is None:
        return scores, []
    written = [out / SCORES, out / "predictions.png", out / "worst.png"]
    write_scores(written[0], checkpoint.digest, tests, scores)
    write_picture(prediction_rows(solver, tests, device), written[1], trained.data.num_classes)
    write_picture(prediction_rows(solver, tests, device, scores=scores), written[2], trained.data.num_classes)
    write_matrices({str(checkpoint.meta["site"]): scores}, list(scores), out / "evaluation")
    return scores, [*written, *sorted((out / "evaluation").iterdir())]


def write_scores(path: Path, checkpoint: str | None, tests: Mapping[str, SiteData], scores: Mapping[str, Any]) -> None:
    """Write scores by test site, with the digests of what was scored and of the test sets that it was scored on."""
    digests = {name: data.digest for name, data in tests.items()}
    scored = {"checkpoint": checkpoint} if checkpoint is not None else {}
    write_atomically(path, json.dumps({**scored, "test_sets": digests, "scores": scores}, indent=1).encode())


def read_scores(path: Path) -> dict[str, Any]:
    """Return what `write_scores` wrote; an empty mapping where there is no such file."""
    saved: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return saved


def scored_on(saved: Mapping[str, Any], tests: Mapping[str, SiteData]) -> bool:
    """Return whether scores that `read_scores` gave were made on these test sets: same names, images, masks, order."""
    return list(saved.get("test_sets", {}).items()) == [(name, data.digest) for name, data in tests.items()]


def test_set_digests(run: RunFile, data_root: Path | None) -> dict[str, str]:
    """Return the digest of every test set of a run that is on this machine, by site. Raises DataError."""
    digests = {}
    for settings in (run.site(i) for i in run.all_ids):
        name, folder = settings.dataset.name, settings.data_folder(data_root, run.base)
        if folder.is_dir() and has_test(name, settings.data, folder):
            data = load_site(name, settings.data, folder=folder, split="test", resolution=settings.resolution)
            digests[settings.name] = data.digest
    return digests


def site_data(
    checkpoint: Checkpoint, trained: SiteSettings, run: RunFile, data_root: Path | None, split: Split
) -> dict[str, SiteData]:
    """Load the training or test images of every site of a run that are on this machine, sized as the solver's were.

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
            as_trained = settings.data.model_copy(update={"fit": trained.data.fit})
            sites[settings.name] = load_site(
                settings.dataset.name, as_trained, folder=folder, split=split, resolution=trained.resolution
            )
    return sites
