"""U-Nets of every kind: shapes, names, local ImageNet weights."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from relay_core.config.solvers import SolverSettings
from relay_core.errors import CheckpointError
from relay_core.models.factory import make_solver
from relay_core.models.flips import Flipped
from relay_core.models.solvers import ResNetEncoder, UNet


@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
@pytest.mark.parametrize(
    ("backbone", "bilinear"), [("plain", False), ("plain", True), ("resnet18", False), ("resnet18", True)]
)
def test_logits_have_the_images_size_whatever_it_is(backbone, bilinear, norm):
    network = UNet(1, 4, backbone, bilinear, norm, base_channels=4)
    for height, width in ((64, 64), (65, 90)):
        x = torch.randn(2, 1, height, width)
        logits = network(x)
        assert logits.shape == (2, 4, height, width)
        assert logits.isfinite().all()


@pytest.mark.parametrize(("backbone", "strides"), [("plain", [1, 2, 4]), ("resnet18", [1, 2, 4, 8])])
def test_deep_supervision_has_a_head_at_all_levels_but_the_coarsest(backbone, strides):
    network = UNet(3, 4, backbone, norm="group", base_channels=4, deep_supervision=True)
    x = torch.randn(2, 3, 64, 96)
    levels = network.levels(x)
    assert [tuple(level.shape) for level in levels] == [(2, 4, 64 // stride, 96 // stride) for stride in strides]
    assert torch.equal(levels[0], network(x))
    assert len(UNet(3, 4, backbone, base_channels=4).levels(x)) == 1


def test_flips_give_the_mean_of_the_probabilities():
    network = UNet(3, 4, norm="group", base_channels=4)
    x = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        answers = [network(x.flip(axes)).softmax(dim=1).flip(axes) for axes in ((), (2,), (3,), (2, 3))]
        torch.testing.assert_close(Flipped(network)(x).softmax(dim=1), torch.stack(answers).mean(dim=0))
        mirrored = Flipped(network)(x.flip(3))
        torch.testing.assert_close(mirrored, Flipped(network)(x).flip(3))  # it knows no left and right
        classifier = make_solver(SolverSettings.of("resnet20"), "classification", 32).eval()
        one, four = classifier(x), Flipped(classifier)(x)
    assert one.shape == four.shape == (2, 3)
    sure = Flipped(lambda_module(lambda x: x * 1e4))  # no probability is 0
    assert sure(x).isfinite().all()


def lambda_module(function):
    module = nn.Module()
    module.forward = function
    return module


def test_resnet50_builds_and_runs():
    network = UNet(3, 3, "resnet50").eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("wrong", [{"backbone": "resnet99"}, {"norm": "bach"}, {"activation": "rely"}])
def test_unknown_names_list_the_known_ones(wrong):
    with pytest.raises(ValueError, match="known: "):
        UNet(3, 3, **wrong)


def test_pretrained_weights_come_from_a_local_file(tmp_path):
    source = ResNetEncoder("resnet18", 3)
    path = tmp_path / "resnet18.safetensors"
    save_file({**source.state_dict(), "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}, path)
    for channels in (3, 1):
        settings = SolverSettings.of(
            "U-Net", in_channels=channels, backbone="resnet18", pretrain=True, pretrain_file=str(path)
        )
        encoder = make_solver(settings).encoder
        assert torch.equal(encoder.layer1[0].conv1.weight, source.layer1[0].conv1.weight)
        grey = torch.rand(1, 1, 32, 32).expand(-1, 3, -1, -1)
        torch.testing.assert_close(encoder.conv1(grey[:, :channels]), source.conv1(grey), rtol=1e-4, atol=1e-5)


def test_pretrained_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    settings = SolverSettings.of("U-Net", backbone="resnet18", pretrain=True, pretrain_file=str(path))
    with pytest.raises(CheckpointError, match="cannot be read"):
        make_solver(settings)
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(CheckpointError, match="do not fit"):
        make_solver(settings)


def test_pretrained_weights_come_from_a_folder_that_the_machine_names(tmp_path, monkeypatch):
    settings = SolverSettings.of("resnet18", pretrain=True)
    monkeypatch.delenv("RELAY_PRETRAINED", raising=False)
    with pytest.raises(CheckpointError, match="RELAY_PRETRAINED"):
        make_solver(settings, "classification")
    source = ResNetEncoder("resnet18", 3)
    save_file(source.state_dict(), tmp_path / "resnet18.safetensors")
    monkeypatch.setenv("RELAY_PRETRAINED", str(tmp_path))
    solver = make_solver(settings, "classification")
    assert torch.equal(solver.encoder.conv1.weight, source.conv1.weight)


PARAMETERS = {
    "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160,
    "resnet152": 60_192_808, "resnext50_32x4d": 25_028_904, "resnext101_32x8d": 88_791_336,
    "wide_resnet50_2": 68_883_240, "wide_resnet101_2": 126_886_696,
}  # fmt: skip
"""As torchvision documents its weights for 1,000 classes."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_imagenet_resnets_have_the_parameters_that_their_weight_files_have(name):
    with torch.device("meta"):
        solver = make_solver(SolverSettings.of(name, num_classes=1000), "classification")
    assert sum(p.numel() for p in solver.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_small_resnets_have_the_sizes_of_the_paper(name, millions):
    """Table 6 of arXiv 1512.03385."""
    with torch.device("meta"):
        solver = make_solver(SolverSettings.of(name, num_classes=10), "classification")
    assert sum(p.numel() for p in solver.parameters()) / 1e6 == pytest.approx(millions, abs=0.035)


def test_owm_net_is_the_papers():
    with torch.device("meta"):
        solver = make_solver(SolverSettings.of("OWM-Net", num_classes=10), "classification", 32)
    shapes = {name: tuple(p.shape) for name, p in solver.named_parameters()}
    assert not any("bias" in name for name in shapes)
    assert list(shapes.values()) == [
        (64, 3, 2, 2), (128, 64, 2, 2), (256, 128, 2, 2), (1000, 4096), (1000, 1000), (10, 1000)
    ]  # fmt: skip


@pytest.mark.parametrize("norm", ["batch", "instance", "group", "layer", "none"])
@pytest.mark.parametrize("name", ["U-Net", "resnet18", "resnet20"])
def test_every_norm_is_an_option_of_every_solver(name, norm):
    task = "segmentation" if name == "U-Net" else "classification"
    more = {"base_channels": 4} if name == "U-Net" else {}
    solver = make_solver(SolverSettings.of(name, norm=norm, activation="silu", **more), task, 32)
    x = torch.randn(2, 3, 64, 64)
    assert solver(x).shape == ((2, 3, 64, 64) if name == "U-Net" else (2, 3))
    assert solver.features(x).ndim == 2
    assert any(isinstance(m, nn.BatchNorm2d) for m in solver.modules()) == (norm == "batch")
