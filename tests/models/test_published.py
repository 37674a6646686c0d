"""Published weights in our networks give the published numbers."""

import pytest
import torch

from relay_core.models import published
from relay_core.models.solvers import UNet
from relay_core.models.stylegan2 import Discriminator, Generator
from tests.reference import needs_reference, tensors

pytestmark = needs_reference
TOLERANCE = {"rtol": 0, "atol": 2e-5}


def values(prefix):
    return published.strip_prefix(
        {k.replace("/", ".", 1): v for k, v in tensors("networks").items()}, prefix
    )  # fmt: skip


def generator(kind, age=""):
    image = kind == "img"
    network = Generator(
        64 if image else 32, 32, 64 if image else 32, 32, 3 if image else 1,
        mapping_layers=4 if image else 2, channel_base=2048 if image else 1024, channel_max=64 if image else 32,
        label_channels=1 if image else 0,
    )  # fmt: skip
    state = published.strip_prefix(tensors("generators_discriminators"), f"G_{kind}{age}")
    network.load_state_dict(published.generator_state(state))
    return network.eval()


def discriminator(kind):
    image = kind == "img"
    network = Discriminator(32, 32, 4 if image else 1, channel_base=2048 if image else 1024, channel_max=64 if image else 32)
    state = published.strip_prefix(tensors("generators_discriminators"), f"D_{kind}")
    network.load_state_dict(published.discriminator_state(state))
    return network.eval()


@torch.no_grad()
def test_solver_logits():
    network = UNet(3, 3, backbone="resnet18")
    state = {k: v.float() if v.is_floating_point() else v for k, v in tensors("solver_unet_resnet18").items()}
    network.load_state_dict(published.unet_state(published.strip_prefix(state, "solver")))
    v = values("solver")
    torch.testing.assert_close(network.eval()(v["x"]), v["logits"], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("age", ["cur", "old"])
def test_label_generator(age):
    g, v = generator("label", "_old" if age == "old" else ""), values(f"G_label_{age}")
    torch.testing.assert_close(g.styles(v["z"], v["c"]), v["ws"], **TOLERANCE)
    torch.testing.assert_close(g.styles(v["z"], v["c"], truncation=0.5), v["ws_psi05"], **TOLERANCE)
    torch.testing.assert_close(g(v["z"], v["c"], noise="const"), v["out"], **TOLERANCE)
    torch.testing.assert_close(g(v["z"], v["c"], noise="none"), v["out_nonoise"], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("age", ["cur", "old"])
def test_image_generator(age):
    g, v = generator("img", "_old" if age == "old" else ""), values(f"G_img_{age}")
    torch.testing.assert_close(g.styles(v["z"], v["c"]), v["ws"], **TOLERANCE)
    torch.testing.assert_close(g(v["z"], v["c"], v["spade"], noise="const"), v["out"], **TOLERANCE)
    torch.testing.assert_close(g(v["z"], v["c"], v["spade"], noise="none"), v["out_nonoise"], **TOLERANCE)
    torch.testing.assert_close(g(v["z"], v["c"], v["spade_soft"], noise="const"), v["out_soft"], **TOLERANCE)


@torch.no_grad()
def test_image_generator_with_batch_statistics():
    g, v = generator("img"), values("G_img_cur")
    g.train()
    g.mapping.eval()
    torch.testing.assert_close(g(v["z"], v["c"], v["spade"], noise="const"), v["out_trainmode"], **TOLERANCE)
    for i, side in enumerate([4, 8, 16, 32]):
        for buffer in ("running_mean", "running_var"):
            expected = v[f"bn_after_trainmode/synthesis.b{side}.spade.param_free_norm.{buffer}"]
            torch.testing.assert_close(getattr(g.blocks[i].spade.norm, buffer), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["img", "label"])
def test_discriminator(kind):
    v = values(f"D_{kind}")
    torch.testing.assert_close(discriminator(kind)(v["x"], v["c"]), v["logits"], **TOLERANCE)
