"""U-Nets of every kind: shapes, names, local ImageNet weights."""

import pytest
import torch
from safetensors.torch import save_file

from relay_core.config.solvers import SolverSettings
from relay_core.errors import CheckpointError
from relay_core.models.factory import make_solver
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
