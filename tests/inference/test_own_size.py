"""Scores at the images' own size, as a clinic sees its masks."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from relay_core.cli.app import app
from relay_core.config import load_run
from relay_core.engine import RelayRun, evaluate_checkpoint
from relay_core.engine.checkpoint import find
from relay_core.errors import RunFileError
from relay_core.export.checkpoint import export_checkpoint
from relay_core.inference import OnnxModel, Question, evaluate_at_own_size, predict_files
from relay_core.inference.answers import answer

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


def test_flips_are_asked_for_and_scored_apart(exported):
    """What is written are the scores of the model that goes on, which does not flip."""
    run, checkpoint = load_run(str(exported.toy.folder / "run.yaml")), find(exported.checkpoint, print)
    call = ["evaluate", str(exported.checkpoint), "--run", str(run.path), "--data-root", str(exported.toy.data), "--json"]
    for size, more in (([], 0), (["--own-size"], 1)):
        plain, flipped = (json.loads(CliRunner().invoke(app, [*call, *size, *flips]).stdout) for flips in ([], ["--flips"]))
        assert plain.keys() == flipped.keys() == {"Domain1", "Domain2"}
        assert plain != flipped
        wanted = (
            evaluate_at_own_size(checkpoint, run, exported.toy.data, CPU, flips=True)
            if more
            else evaluate_checkpoint(checkpoint, run, exported.toy.data, CPU, None, flips=True)[0]
        )
        assert flipped == json.loads(json.dumps(wanted))
    refused = CliRunner().invoke(app, [*call, "--flips", "--out", str(exported.toy.folder / "scores")])
    assert refused.exit_code == 2
    assert not (exported.toy.folder / "scores").exists()


def test_a_classifier_has_no_size(classifier):
    run = load_run(str(classifier.toy.folder / "run.yaml"))
    with pytest.raises(RunFileError, match="is a classifier: its answers have no size"):
        evaluate_at_own_size(find(classifier.checkpoint, print), run, classifier.toy.data, CPU)


def test_the_service_the_terminal_and_the_training_see_a_long_image_alike(toy, tmp_path):
    """A model that learned padded squares gives the same mask by the service's question as by `relay predict`."""
    run = toy.run(sites=1, dataset={"kwargs": {"fit": "pad"}}, model={"kwargs": {"train_gan": False}})
    RelayRun(run, toy.folder / "out", toy.data, CPU)()
    checkpoint = find(toy.folder / "out/task_1", print)
    export_checkpoint(checkpoint, run, toy.data, tmp_path / "model.onnx", "fp32")
    model = OnnxModel((tmp_path / "model.onnx").read_bytes(), "cpu")
    long = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 61, 3), dtype=np.uint8))
    (tmp_path / "images").mkdir()
    long.save(tmp_path / "images/long.png")
    question = Question.of(Question.about(model.facts, "toy", 1, model.provider, "mask").to_json())
    assert question.fit == "pad"
    served = answer((tmp_path / "images/long.png").read_bytes(), question, model)
    predict_files(checkpoint, [tmp_path / "images"], tmp_path / "masks", "png", None, CPU)
    terminal = np.asarray(Image.open(tmp_path / "masks/long.png"))
    assert terminal.shape == (24, 61)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(served.body))), terminal)
    whole_graph = model(np.asarray(long, np.float32).transpose(2, 0, 1)[None] / 255, ("mask",))[0][0]
    assert (whole_graph != terminal).mean() < 0.01  # the graph by itself does the same, up to rounding
