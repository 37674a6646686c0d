"""Scores at the images' own size, as a clinic sees its masks."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from relay_core.cli.app import app
from relay_core.config import load_run
from relay_core.engine.checkpoint import find
from relay_core.errors import RunFileError
from relay_core.inference import evaluate_at_own_size, predict_files

CPU = torch.device("cpu")


def test_masks_are_scored_on_the_images_own_pixels(exported, tmp_path):
    run, checkpoint = load_run(str(exported.toy.folder / "run.yaml")), find(exported.checkpoint, print)
    scores = evaluate_at_own_size(checkpoint, run, exported.toy.data, CPU)
    assert set(scores) == {"Domain1", "Domain2"}
    base = exported.toy.data / "Domain2/test/ROIs"
    predict_files(checkpoint, [base / "image"], tmp_path, "png", None, CPU)
    wanted = []
    for path in sorted((base / "mask").iterdir()):
        label, mask = np.asarray(Image.open(path)), np.asarray(Image.open(tmp_path / path.name))
        assert mask.shape == label.shape == (32, 32)  # the solver learned at 16
        truth = np.select([label == 128, label == 0], [1, 2], 0)
        dice = [2 * ((truth == c) & (mask == c)).sum() / max(1, (truth == c).sum() + (mask == c).sum()) for c in (1, 2)]
        wanted.append(np.mean(dice))
    assert [sample["dice"] for sample in scores["Domain2"]["samples"]] == pytest.approx(wanted)
    assert scores["Domain2"]["hd95_unit"] == "px"

    call = ["evaluate", str(exported.checkpoint), "--run", str(exported.toy.folder / "run.yaml"), "--data-root"]
    told = CliRunner().invoke(app, [*call, str(exported.toy.data), "--own-size", "--json"])
    assert json.loads(told.stdout) == scores


def test_a_classifier_has_no_size(classifier):
    run = load_run(str(classifier.toy.folder / "run.yaml"))
    with pytest.raises(RunFileError, match="is a classifier: its answers have no size"):
        evaluate_at_own_size(find(classifier.checkpoint, print), run, classifier.toy.data, CPU)
