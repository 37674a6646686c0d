"""Scores of a solver at the images' own size, where a clinic sees its masks, not at the resolution that it learned at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from relay_core.config import RunFile
from relay_core.data import SiteData
from relay_core.engine import Checkpoint, site_data
from relay_core.errors import DataError, RunFileError
from relay_core.inference.torch_model import torch_run
from relay_core.metrics import SegmentationScores


def evaluate_at_own_size(
    checkpoint: Checkpoint, run: RunFile, data_root: Path | None, device: torch.device, flips: bool = False
) -> dict[str, Any]:
    """Score the masks that a checkpoint's solver gives, brought back to each image's own pixels, against the labels' pixels.

    Returns the scores by test site, see `SegmentationScores.compute`; distances in pixels are in the images' own.
    `flips` averages the answers over the four flips of each image.

    Raises:
        DataError: none of the run's test sets is on this machine, or a file of one cannot be read.
        RunFileError: the run has other classes or channels, or the solver is a classifier.
    """
    predict, settings = torch_run(checkpoint, device, flips)
    if settings.data.task != "segmentation":
        raise RunFileError(f"{checkpoint.path} is a classifier: its answers have no size")
    tests = site_data(checkpoint, settings, run, data_root, "test")
    if not tests:
        raise DataError(f"none of the image folders of {run.path} is on this machine; give --data-root")
    return {name: _scores(predict, data) for name, data in tests.items()}


def _scores(predict: Any, data: SiteData) -> dict[str, Any]:
    scores = SegmentationScores(data.num_classes, data.groups, data.merged)
    for i, subject in enumerate(data.subjects):
        image, label, spacing = data.at_own_size(i)
        (mask,) = predict(image[None].numpy(), ("mask",))
        scores.update(torch.from_numpy(mask).long(), label[None], [subject], [spacing])
    return scores.compute()
