"""The regularisers against the published values."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from relay_core.replay import LabelCodec
from relay_core.replay.bank import one_hot
from relay_core.strategies import make_strategy
from relay_core.strategies.adversarial import PATH_DECAY, SiteCodes, path_lengths, r1_penalty
from tests.conftest import Toy
from tests.models.test_published import discriminator, generator, values
from tests.reference import needs_reference

GENERATOR = {
    "modulation.weight": ("mlp_gamma.weight", "mlp_beta.weight"),
    "modulation.bias": ("mlp_gamma.bias", "mlp_beta.bias"),
}


@needs_reference
def test_r1_and_its_gradient_by_weight():
    v, network = values("r1_img"), discriminator("img")
    x = v["x"].requires_grad_()
    logits = network(x, values("D_img")["c"])
    penalty = r1_penalty(logits, x, channels=v["grad"].shape[1])
    torch.testing.assert_close(penalty, v["penalty"], rtol=1e-4, atol=1e-6)
    penalty.mean().backward()
    expected = v["wgrad/b32.conv0.weight"]
    actual = network.blocks[0].conv0.weight.grad
    torch.testing.assert_close(actual, expected * (actual.norm() / expected.norm()), rtol=1e-3, atol=1e-6)


@needs_reference
def test_path_lengths_and_their_gradient_by_style():
    v, network = values("pl_img"), generator("img")
    ws = network.styles(v["z"], v["c"])
    image = network.synthesize(ws, v["spade"], noise="const")
    for scale in (1.0, 1 / 32):
        lengths = path_lengths(image, ws, v["noise"] * scale)
        if torch.allclose(lengths, v["lengths"], rtol=1e-3):
            break
    torch.testing.assert_close(lengths, v["lengths"], rtol=1e-4, atol=1e-6)
    mean = v["lengths"].mean() * PATH_DECAY
    torch.testing.assert_close(mean, v["mean_after"], rtol=1e-4, atol=1e-7)


@needs_reference
def test_label_coding():
    v = values("label_codec")
    codec = LabelCodec(3)
    torch.testing.assert_close(codec.encode(v["ids"].long()), v["one_ch"])
    assert torch.equal(codec.decode(v["soft"]), v["back"])


def test_label_coding_there_and_back_for_any_number_of_classes():
    for classes in (2, 3, 7, 16):
        ids = torch.randint(0, classes, (2, 4, 4))
        codec = LabelCodec(classes, noise=0.02)
        coded = codec.encode(ids)
        assert coded.min() >= -1
        assert coded.max() <= 1
        assert torch.equal(codec.decode(codec.add_noise(coded)), ids)


def test_the_penalties_compute_no_gradient_by_weights(phantom_data, tmp_path):
    """Their inner gradients are by styles and by images: a convolution's weights would cost a third again."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.convolution_backward.default:
                seen.append(tuple(args[-1]))
            return function(*args, **(kwargs or {}))

    settings = Toy(phantom_data, tmp_path).run().sites()[0]
    pair = make_strategy(settings, torch.device("cpu")).gan.pairs[1]
    slots, labels = torch.zeros(2, dtype=torch.long), torch.randn(2, 1, 16, 16)
    ws = pair.styles(SiteCodes(one_hot(slots, pair.c_dim)))[0]
    image = pair.generator.synthesize(ws, labels)
    with Watch():
        path_lengths(image, ws, torch.randn_like(image))
    x = torch.randn(2, 4, 16, 16).requires_grad_()
    logits = pair.discriminate(x, one_hot(slots, pair.c_dim))
    with Watch():
        r1_penalty(logits, x, 3)
    assert len(seen) > 10
    assert {mask[1] for mask in seen} == {False}


def relay(toy, **kwargs):
    """A relay at its first site."""
    torch.manual_seed(0)
    strategy = make_strategy(toy.run(model={"kwargs": kwargs}).site(1), torch.device("cpu"))
    strategy.begin_site("A", 8)
    return strategy


def test_r1_is_the_gradient_by_what_the_discriminator_sees(toy):
    """By the augmented images, not by the images before the augmentation: the two differ where p > 0."""
    pair = relay(toy).gan.pairs[1]
    pair.ada.p = 0.9
    x, code = torch.randn(8, 4, 16, 16), one_hot(torch.zeros(8, dtype=torch.long), pair.c_dim)
    torch.manual_seed(3)
    logits, penalty = pair.discriminate_real(x, code, regularise=True)

    torch.manual_seed(3)
    before = x.clone().requires_grad_()
    seen = pair.pipe(before, 0.9)
    assert not torch.allclose(seen, before)
    again = pair.discriminator(seen, code)
    torch.testing.assert_close(again, logits)
    by_seen, by_image = torch.autograd.grad(again.sum(), [seen, before])
    torch.testing.assert_close(penalty, by_seen.square().sum(dim=[1, 2, 3]).mean())
    assert penalty.item() != pytest.approx(float(by_image.square().sum(dim=[1, 2, 3]).mean()), rel=1e-3)


def test_the_average_of_a_generator_is_the_one_computed_by_hand(toy):
    """After n images: keep^n of what it was, keep = 0.5 at `generator_ema_kimg` thousand images; buffers too."""
    strategy = relay(toy, generator_ema_kimg=0.016)
    averaged, generator = strategy.networks["G_img_ema"], strategy.networks["G_img"]
    start = copy.deepcopy(averaged.state_dict())
    with torch.no_grad():
        for value in (*generator.parameters(), *(b for b in generator.buffers() if b.is_floating_point())):
            value.add_(1.0)
    strategy.gan._average(8)  # half of 16 images
    keep = 0.5 ** (8 / 16)
    for name, value in averaged.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, keep * start[name] + (1 - keep) * generator.state_dict()[name])
    strategy.gan._average(8)
    name = "mapping.embed.weight"
    torch.testing.assert_close(averaged.state_dict()[name], start[name] + 0.5)
