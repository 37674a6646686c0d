"""Both distances against closed forms, brute force and torchmetrics; features from a solver and from an ONNX file."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from relay_core.errors import DataError, ExportError
from relay_core.metrics import generated
from relay_core.metrics.generated import (
    OnnxFeatures,
    SolverFeatures,
    frechet_distance,
    generator_scores,
    kernel_distance,
)
from relay_core.metrics.replay import coverage_scores


class Pixels(nn.Module):
    """A stand-in for a solver whose features are the pixels; counts how it is run."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3, affine=False)
        self.batches = []

    def features(self, images):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batches.append(len(images))
        return images.flatten(1)


def normal(count, size, seed, mean=0.0, scale=1.0):
    return mean + scale * torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(count, seed, channels=3, side=4):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def onnx_file(path, inputs, outputs=("n", "d"), op="Flatten", kinds=(TensorProto.FLOAT, TensorProto.FLOAT)):
    """A network of one node."""
    x = helper.make_tensor_value_info("x", kinds[0], inputs)
    y = helper.make_tensor_value_info("y", kinds[1], outputs)
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "features", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_frechet_distance_of_equal_sets_is_nothing():
    for x in (normal(20, 50, 0), normal(500, 7, 1, mean=1e3)):
        assert frechet_distance(x, x) == pytest.approx(0, abs=1e-8)
        assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-8)


def test_frechet_distance_is_the_closed_form_of_gaussians():
    """Independent features: |mu|^2 + sum (s1 - s2)^2. A shift of the same sample: |mu|^2 exactly."""
    x = normal(300, 6, 0)
    shift = torch.arange(6.0)
    assert frechet_distance(x, x + shift) == pytest.approx(float(shift.square().sum()))
    scales = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0])
    exact = float(shift.square().sum() + (scales - 1).square().sum())
    big, other = normal(40_000, 6, 1), normal(40_000, 6, 2) * scales + shift
    assert frechet_distance(big, other) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(("count", "other"), [(200, 150), (9, 300), (9, 12)])
def test_frechet_distance_equals_torchmetrics(count, other):
    x, y = normal(count, 20, 0), normal(other, 20, 1, 0.3, 1.5)
    network = nn.Identity()
    network.num_features = 20
    theirs = FrechetInceptionDistance(feature=network)
    theirs.update(x, real=True)
    theirs.update(y, real=False)
    assert frechet_distance(x, y) == pytest.approx(float(theirs.compute()), rel=1e-5)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x))


def brute_kernel_distance(x, y):
    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    def within(z):
        return np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])

    return within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_kernel_distance_equals_brute_force():
    x, y = normal(12, 5, 0), normal(12, 5, 1, 0.5)
    assert kernel_distance(x, y) == pytest.approx(brute_kernel_distance(x.numpy(), y.numpy()))
    assert kernel_distance(x, y) > 0.1
    assert kernel_distance(x.float(), y.float()) == pytest.approx(kernel_distance(x, y), rel=1e-5)


def test_kernel_distance_of_subsets_is_near_that_of_all(monkeypatch):
    x, y = normal(60, 5, 0), normal(90, 5, 1, 0.5)
    monkeypatch.setattr(generated, "SUBSET_SIZE", 40)
    found = kernel_distance(x, y)
    assert found == pytest.approx(brute_kernel_distance(x.numpy(), y.numpy()), rel=0.1)
    assert kernel_distance(x, y) == found != kernel_distance(x, y, seed=1)


def test_kernel_distance_is_unbiased():
    """On the same Gaussian it is as often below as above nothing."""
    values = [kernel_distance(normal(30, 4, 2 * i), normal(30, 4, 2 * i + 1)) for i in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values))
    assert min(values) < 0 < max(values)


def test_scores_of_a_solver_say_so():
    solver = Pixels().train()
    real, other = pictures(40, 0), pictures(40, 1) * 0.5
    before = torch.get_rng_state()
    scores = generator_scores(real, other, SolverFeatures(solver))
    assert torch.equal(before, torch.get_rng_state())
    assert solver.training
    assert max(solver.batches) <= 32
    x, y = real.flatten(1), other.flatten(1)
    assert scores == {
        "fid_solver_encoder": frechet_distance(x, y),
        "kid_solver_encoder": kernel_distance(x, y),
        **coverage_scores(x, y),
        "features": "solver encoder (not Inception)",
        "num_real": 40,
        "num_generated": 40,
    }
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert generator_scores(real, other, SolverFeatures(solver)) == scores
    same = generator_scores(real, real, SolverFeatures(solver))
    assert same["fid_solver_encoder"] == pytest.approx(0, abs=1e-8)
    assert same["kid_solver_encoder"] < 0  # unbiased: k(x, x) is left out within the sets, not between them


def test_worse_pictures_score_worse():
    real, features = pictures(60, 0), SolverFeatures(Pixels())
    found = [generator_scores(real, pictures(50, 1) * (1 - s) + s, features) for s in (0, 0.3, 0.6)]
    for key in ("fid_solver_encoder", "kid_solver_encoder"):
        values = [scores[key] for scores in found]
        assert values == sorted(values)


def test_scores_with_a_file_carry_its_name(tmp_path):
    features = OnnxFeatures(onnx_file(tmp_path / "pixels.onnx", ("n", 3, "h", "w")))
    real, other = pictures(20, 0), pictures(30, 1)
    scores = generator_scores(real, other, features)
    assert scores["features"] == "pixels.onnx"
    assert scores["fid"] == pytest.approx(frechet_distance((real.flatten(1) + 1) / 2, (other.flatten(1) + 1) / 2))
    coverage = {"precision", "recall", "density", "coverage"}
    assert set(scores) == {"fid", "kid", *coverage, "features", "num_real", "num_generated"}
    assert generator_scores(real, other, features) == scores


def test_a_file_gets_images_of_its_size_in_0_to_1(tmp_path):
    images = pictures(5, 0, side=8)
    fixed = OnnxFeatures(onnx_file(tmp_path / "fixed.onnx", ("n", 3, 6, 10)))(images)
    expected = F.interpolate((images + 1) / 2, (6, 10), mode="bilinear", antialias=True)
    torch.testing.assert_close(fixed, expected.flatten(1))
    free = OnnxFeatures(onnx_file(tmp_path / "free.onnx", ("n", 3, None, None)))(images)
    torch.testing.assert_close(free, (images.flatten(1) + 1) / 2)
    grey = OnnxFeatures(tmp_path / "free.onnx")(images[:, :1])
    torch.testing.assert_close(grey, (images[:, :1].expand(-1, 3, -1, -1).flatten(1) + 1) / 2)


def test_a_map_of_features_is_averaged(tmp_path):
    images = pictures(5, 0)
    features = OnnxFeatures(onnx_file(tmp_path / "map.onnx", ("n", 3, "h", "w"), ("n", 3, "h", "w"), op="Relu"))
    torch.testing.assert_close(features(images), ((images + 1) / 2).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"inputs": ("n", 3)}, "input must be float32"),
        ({"inputs": (1, 3, 8, 8)}, "free batch"),
        ({"inputs": ("n", 4, 8, 8)}, "3 or 1"),
        ({"inputs": ("n", 3, 8, 8), "kinds": (TensorProto.DOUBLE, TensorProto.DOUBLE)}, "float32"),
        ({"inputs": ("n", 3, 8, 8), "outputs": (4,), "op": "Shape", "kinds": (1, TensorProto.INT64)}, "first output"),
        ({"inputs": ("n", 3, 8, 8), "op": "Flotten"}, "cannot load it"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, network, message):
    with pytest.raises(ExportError, match=message):
        OnnxFeatures(onnx_file(tmp_path / "other.onnx", **network))


def test_a_missing_or_damaged_file_and_colour_for_a_grey_network_are_refused(tmp_path):
    with pytest.raises(ExportError, match=r"none\.onnx: cannot be read"):
        OnnxFeatures(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ExportError, match="no ONNX file"):
        OnnxFeatures(tmp_path / "text.onnx")
    grey = OnnxFeatures(onnx_file(tmp_path / "grey.onnx", ("n", 1, "h", "w")))
    with pytest.raises(ExportError, match="takes 1 channels, the images have 3"):
        grey(pictures(2, 0))


def test_bad_images_are_refused():
    features = SolverFeatures(Pixels())
    with pytest.raises(DataError, match="not 5 real and 1 generated"):
        generator_scores(pictures(5, 0), pictures(1, 0), features)
    with pytest.raises(ValueError, match="alike"):
        generator_scores(pictures(5, 0), pictures(5, 0, channels=1), features)
    with pytest.raises(DataError, match="generated images are not finite"):
        generator_scores(pictures(5, 0), pictures(5, 0) * math.nan, features)
