"""Exported models: what is proved, what is refused, what they say of themselves."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from relay_core.config import load_run
from relay_core.config.solvers import SolverSettings
from relay_core.engine import RelayRun
from relay_core.engine.checkpoint import find
from relay_core.engine.evaluate import settings_of
from relay_core.engine.scoring import site_data
from relay_core.errors import DeviceError, ExportError
from relay_core.export import onnx as exporting
from relay_core.export.checkpoint import export_checkpoint
from relay_core.inference.onnx_model import KEY, ModelFacts, OnnxModel, providers
from relay_core.inference.served import ServedSolver, resize
from relay_core.models.factory import make_solver


@pytest.fixture(scope="module")
def checkpoint(exported):
    return find(exported.checkpoint, print)


def data(exported, checkpoint, split):
    run = load_run(str(exported.toy.folder / "run.yaml"))
    return site_data(checkpoint, settings_of(checkpoint), run, exported.toy.data, split)


@pytest.mark.parametrize(
    ("size", "side"), [(64, 64), (512, 64), (100, 64), (63, 64), (33, 64), (65, 32), (37, 128), (64, 8)]
)
def test_resizing_is_that_of_training(size, side):
    x = torch.rand(2, 3, size, size + 5)
    wanted = torch.nn.functional.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(resize(x, side), wanted, atol=1e-6, rtol=0)


def test_a_model_says_what_it_is_and_was_proved(exported, checkpoint):
    session = OnnxModel(exported.content, "cpu")
    facts = session.facts
    assert facts.to_json() == ModelFacts(**{**facts.__dict__}).to_json()
    assert (facts.classes, facts.channels, facts.resolution) == (("background", "optic disc", "optic cup"), 3, 16)
    assert (facts.sites, facts.checkpoint, facts.run) == (("Domain1", "Domain2"), checkpoint.digest, checkpoint.meta["run"])
    assert set(facts.looks) == {"Domain1", "Domain2"}
    proof = exported.proof
    assert len(proof["parity"]) >= 4
    assert len({case["shape"][0] for case in proof["parity"]}) >= 4
    assert all(case["max_abs_difference"] <= 1e-4 for case in proof["parity"])
    assert set(proof["tests"]) == {"Domain1", "Domain2"}
    for found in proof["tests"].values():
        assert (found["images"], found["differ"], found["dice"]) == (5, 0, found["dice_torch"])
    model = onnx.load_from_string(exported.content)
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        3,
        "height",
        "width",
    ]
    assert all(not tensor.external_data for tensor in model.graph.initializer)


def test_any_batch_and_any_size_run(exported):
    session = OnnxModel(exported.content, "cpu")
    for count, height, width in ((1, 1, 1), (7, 16, 16), (2, 50, 31), (1, 300, 200)):
        outputs = session(np.random.default_rng(0).random((count, 3, height, width), dtype=np.float32))
        assert [o.shape for o in outputs[:4]] == [(count, 3, height, width)] * 2 + [(count, height, width)] * 2
        np.testing.assert_allclose(outputs[1].sum(axis=1), 1, atol=1e-5)
        assert (outputs[3] == outputs[1].argmax(axis=1)).all()
        assert outputs[3].dtype == np.uint8


def test_a_classifier_says_what_it_is_and_was_proved(classifier):
    session = OnnxModel(classifier.content, "cpu")
    assert (session.facts.task, session.facts.classes) == ("classification", ("negative", "positive"))
    assert all(case["max_abs_difference"] <= 1e-4 for case in classifier.proof["parity"])
    for found in classifier.proof["tests"].values():
        assert found == {"images": 8, "differ": 0, "ties": 0, "accuracy": 1.0, "accuracy_torch": 1.0}
    for count, height, width in ((1, 1, 1), (7, 16, 16), (2, 50, 31)):
        outputs = session(np.random.default_rng(0).random((count, 1, height, width), dtype=np.float32))
        assert [o.shape for o in outputs] == [(count, 2), (count, 2), (count,), (count,), (count, 3)]
        np.testing.assert_allclose(outputs[1].sum(axis=1), 1, atol=1e-5)
        np.testing.assert_array_equal(outputs[2], outputs[1].max(axis=1))
        assert (outputs[3] == outputs[0].argmax(axis=1)).all()
        assert outputs[3].dtype == np.uint8


def test_a_model_that_names_no_task_is_a_segmentation(exported):
    told = json.loads(OnnxModel(exported.content, "cpu").facts.to_json())
    del told["task"]
    assert ModelFacts.of(json.dumps(told)).task == "segmentation"
    for task in ("detection", None, ["classification"]):
        with pytest.raises(ExportError, match="none that this version of relay exported"):
            ModelFacts.of(json.dumps({**told, "task": task}))


def test_a_classifier_of_other_weights_or_less_accuracy_is_refused(classifier, monkeypatch):
    checkpoint = find(classifier.checkpoint, print)
    tests, training = data(classifier, checkpoint, "test"), data(classifier, checkpoint, "train")
    solver, trained = exporting.load_solver(checkpoint, torch.device("cpu"))
    with torch.no_grad():
        solver.head.bias += torch.tensor([0.0, 1e3])  # all are positive
    monkeypatch.setattr(
        exporting, "_logits", lambda network, images: OnnxModel(classifier.content, "cpu")(images, ("logits",))[0]
    )
    with pytest.raises(ExportError, match="chooses other classes on 4 of Domain1's test images"):
        exporting.prove(classifier.content, ServedSolver.of(solver, trained), trained, tests, "fp32")
    monkeypatch.undo()
    solver, trained = exporting.load_solver(checkpoint, torch.device("cpu"))
    for precision in ("fp16", "int8"):
        content, proof = exporting.export(checkpoint, tests, precision, training["Domain2"])
        assert proof.tests["Domain1"]["accuracy_torch"] == 1.0
    monkeypatch.setattr(exporting, "LOSS", -1.0)
    with pytest.raises(ExportError, match=r"int8 loses 0\.000 balanced accuracy on Domain1"):
        exporting.prove(content, ServedSolver.of(solver, trained), trained, tests, "int8")


CLASSIFIERS = [("resnet20", {}), ("OWM-Net", {}), ("U-Net", {"backbone": "resnet18"})]


@pytest.mark.parametrize(("name", "settings"), CLASSIFIERS, ids=[name for name, _ in CLASSIFIERS])
def test_every_kind_of_classifier_exports_with_parity(exported, checkpoint, name, settings):
    torch.manual_seed(0)
    solver = make_solver(SolverSettings.of(name, **settings), "classification", 32).eval()
    trained = settings_of(checkpoint)
    network = ServedSolver(solver, 32, (-1.0, 1.0), task="classification").eval()
    model = exporting._to_onnx(network, trained)
    entry = model.metadata_props.add()
    facts = replace(OnnxModel(exported.content, "cpu").facts, task="classification")
    entry.key, entry.value = KEY, facts.to_json()
    proof = exporting.prove(model.SerializeToString(), network, trained, {}, "fp32")
    assert max(case["max_abs_difference"] for case in proof.parity) <= 1e-4


PLAIN = [("batch", "relu"), ("instance", "silu"), ("group", "elu"), ("none", "lrelu")]  # benchmarks/export.py has all
ZOO = [
    {"backbone": "plain", "base_channels": 4, "norm": norm, "activation": activation, "bilinear": i % 2 == 0}
    for i, (norm, activation) in enumerate(PLAIN)
] + [{"backbone": "resnet18"}]


@pytest.mark.parametrize("settings", ZOO, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_every_solver_exports_with_parity(exported, checkpoint, settings):
    torch.manual_seed(0)
    solver = make_solver(SolverSettings.of("U-Net", **settings)).eval()
    trained = settings_of(checkpoint)
    network = ServedSolver(solver, 32, (-1.0, 1.0)).eval()
    model = exporting._to_onnx(network, trained)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, OnnxModel(exported.content, "cpu").facts.to_json()
    proof = exporting.prove(model.SerializeToString(), network, trained, {}, "fp32")
    assert max(case["max_abs_difference"] for case in proof.parity) <= 1e-4


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_models_keep_their_dice_or_are_refused(exported, checkpoint, precision, monkeypatch):
    monkeypatch.setattr(exporting, "LOSS", 1.0)  # the toy has learned nothing that could be kept
    tests, training = data(exported, checkpoint, "test"), data(exported, checkpoint, "train")
    content, proof = exporting.export(checkpoint, tests, precision, training["Domain2"])
    assert len(content) < 0.7 * len(exported.content)
    assert OnnxModel(content, "cpu").facts.precision == precision
    assert all({"dice", "dice_torch"} <= set(found) for found in proof.tests.values())
    assert max(case["max_abs_difference"] for case in proof.parity) < (0.01 if precision == "fp16" else 1.0)
    monkeypatch.setattr(exporting, "LOSS", -1.0)
    solver, trained = exporting.load_solver(checkpoint, torch.device("cpu"))
    with pytest.raises(ExportError, match=f"{precision} loses .* Dice on Domain1"):
        exporting.prove(content, ServedSolver.of(solver, trained), trained, tests, precision)


def test_a_model_of_other_weights_is_refused(exported, checkpoint):
    solver, trained = exporting.load_solver(checkpoint, torch.device("cpu"))
    network, tests = ServedSolver.of(solver, trained), data(exported, checkpoint, "test")
    exporting.prove(exported.content, network, trained, tests, "fp32")
    with torch.no_grad():
        solver.head.bias[1] += 0.01
    with pytest.raises(ExportError, match="logits are off by 1"):
        exporting.prove(exported.content, network, trained, tests, "fp32")


def test_classes_that_differ_are_refused_however_close_the_logits(exported, checkpoint, monkeypatch):
    solver, trained = exporting.load_solver(checkpoint, torch.device("cpu"))
    network, tests = ServedSolver.of(solver, trained), data(exported, checkpoint, "test")
    with torch.no_grad():
        solver.head.bias[1] += 0.05
    monkeypatch.setattr(
        exporting, "_logits", lambda network, images: OnnxModel(exported.content, "cpu")(images, ("logits",))[0]
    )
    with pytest.raises(ExportError, match="chooses other classes"):
        exporting.prove(exported.content, network, trained, tests, "fp32")


def test_nothing_is_exported_unproved(checkpoint):
    with pytest.raises(ExportError, match="no test images"):
        exporting.export(checkpoint, {})


def test_files_that_are_none_of_ours_are_refused(exported):
    with pytest.raises(ExportError, match="cannot be loaded"):
        OnnxModel(b"hello", "cpu")
    model = onnx.load_from_string(exported.content)
    del model.metadata_props[:]
    with pytest.raises(ExportError, match="none that this version of relay exported"):
        OnnxModel(model.SerializeToString(), "cpu")
    for bad in ("{}", "[]", '{"format": 2}', "x"):
        with pytest.raises(ExportError):
            ModelFacts.of(bad)


def test_devices_by_name(exported):
    assert providers("cpu") == ["CPUExecutionProvider"]
    for name in ("gpu", "cuda:x", "", "cpu:1x"):
        with pytest.raises(DeviceError):
            providers(name)
    session = OnnxModel(exported.content, "cuda")
    assert session.degraded == (session.provider != "CUDAExecutionProvider")
    assert not OnnxModel(exported.content, "auto").degraded


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_model_of_images_that_keep_their_aspect_ratio_is_exported_and_states_it(toy, fit):
    run = toy.run(sites=1, dataset={"kwargs": {"fit": fit}}, model={"kwargs": {"train_gan": False}})
    RelayRun(run, toy.folder / "out", toy.data, torch.device("cpu"))()
    path = toy.folder / "model.onnx"
    proof, facts = export_checkpoint(find(toy.folder / "out/task_1", print), run, toy.data, path, "fp32")
    assert (facts["fit"], facts["resolution"]) == (fit, 16)
    assert {tuple(row["shape"][2:]) for row in proof["parity"]} >= {(32, 23), (53, 16)}  # of other shapes, both ways
    assert all(row["max_abs_difference"] <= 1e-4 for row in proof["parity"])
