"""Properties of the generators and discriminators that hold whatever the weights."""

import pytest
import torch

from relay_core.models.stylegan2 import Discriminator, Generator

N = 4


def make(label_channels=0):
    torch.manual_seed(0)
    return Generator(8, 4, 8, 16, 3, mapping_layers=2, channel_base=128, channel_max=8, label_channels=label_channels)


def inputs():
    return torch.randn(N, 8), torch.eye(4)


def test_mixing_at_the_ends_is_one_style_or_the_other():
    g = make().eval()
    (z, c), (other, d) = inputs(), inputs()
    d = d.flip(0)
    mixed = g.mixed_styles(z, c, other, d, torch.tensor([0, g.num_ws, 2, 3]))
    torch.testing.assert_close(mixed[0], g.styles(other, d)[0])
    torch.testing.assert_close(mixed[1], g.styles(z, c)[1])
    torch.testing.assert_close(mixed[2, :2], g.styles(z, c)[2, :2])
    torch.testing.assert_close(mixed[2, 2:], g.styles(other, d)[2, 2:])


def test_the_mean_style_moves_in_training_only():
    g = make()
    z, c = inputs()
    g.eval()(z, c)
    assert not g.mapping.w_avg.any()
    g.train()(z, c)
    assert g.mapping.w_avg.any()
    torch.testing.assert_close(g.eval().styles(z, c, truncation=0.0)[0, 0], g.mapping.w_avg)


def test_the_label_map_and_the_site_change_the_image():
    g = make(label_channels=1).eval()
    z, c = inputs()
    maps = torch.randn(N, 1, 16, 16)
    with torch.no_grad():
        for parameter in g.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        one = g(z, c, maps, noise="none")
        assert one.shape == (N, 3, 16, 16)
        assert not torch.allclose(one, g(z, c, -maps, noise="none"))
        assert not torch.allclose(one, g(z, c.flip(0), maps, noise="none"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_and_finite(dtype):
    g, d = make(label_channels=1).eval(), Discriminator(4, 16, 4, channel_base=128, channel_max=8)
    z, c = inputs()
    maps = torch.randn(N, 1, 16, 16)
    with torch.no_grad():
        full = g(z, c, maps, noise="none")
        judged = d(torch.cat([full, maps], 1), c)
        g.use_half(dtype)
        d.use_half(dtype)
        half = g(z, c, maps, noise="none")
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, full, rtol=0.1, atol=0.1)
        torch.testing.assert_close(d(torch.cat([full, maps], 1), c), judged, rtol=0.1, atol=0.1)


def test_minibatch_statistics_see_the_group():
    d = Discriminator(4, 16, 3, channel_base=128, channel_max=8).eval()
    x = torch.randn(N, 3, 16, 16)
    c = torch.eye(4)
    with torch.no_grad():
        together = d(x, c)
        alike = d(x[:1].expand(N, -1, -1, -1), c[:1].expand(N, -1))
    assert together.shape == (N, 1)
    torch.testing.assert_close(alike, alike[:1].expand(N, 1))
    assert not torch.allclose(together[:1], alike[:1])


@pytest.mark.parametrize("side", [4, 12, 48])
def test_a_resolution_that_is_no_power_of_two_is_refused(side):
    with pytest.raises(ValueError, match="power of two"):
        Generator(8, 4, 8, side, 3)


def test_a_label_generator_of_classes_draws_their_values():
    torch.manual_seed(0)
    g = Generator(8, 4, 8, 16, 1, mapping_layers=2, channel_base=128, channel_max=8, classes=3)
    z, c = torch.randn(16, 8), torch.eye(4).repeat(4, 1)
    drawn = g(z, c)
    assert drawn.shape == (16, 1, 16, 16)
    assert drawn.abs().max() <= 1
    near = torch.stack([(drawn - value).abs() for value in (-1, 0, 1)]).amin(dim=0)
    assert (near < 0.1).float().mean() > 0.5  # most pixels are decided from the start
    drawn.sum().backward()
    assert g.blocks[-1].to_image.weight.grad.abs().sum() > 0
    assert g.blocks[-1].to_image.weight.shape[0] == 3
