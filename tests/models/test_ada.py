"""The augmentation pipe against the published one's numbers, and its controller."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from relay_core.models.stylegan2.ada import AdaptiveAugment, AugmentPipe
from relay_core.models.stylegan2.ada_transforms import Draws, band_gains, colour, filter_bank, geometry

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "networks.safetensors"
PIPES = ("b", "bg", "bgc", "bgcf", "bgcfn")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def reference(*names):
    if not REFERENCE.exists():
        pytest.skip("the published implementation's numbers (shared/reference) are not beside this checkout")
    with safe_open(REFERENCE, "pt") as file:
        return [file.get_tensor(name) for name in names]


@pytest.mark.parametrize("kind", ["img", "label", "rgb"])
@pytest.mark.parametrize("percentile", [0.2, 0.65])
@pytest.mark.parametrize("pipe", ["bg", "bgc", "bgcf"])
def test_every_draw_at_one_percentile_equals_the_published_pipe(pipe, percentile, kind):
    x, out = reference(*(f"ada_debug_{pipe}/{percentile}/{kind}/{end}" for end in ("x", "out")))
    y = AugmentPipe(pipe, published=True)(x, p=1.0, percentile=percentile)
    assert (y - out).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["img", "label"])
def test_published_pipe_at_p_0_is_the_identity_up_to_rounding(kind):
    x, out = reference(f"ada_p0_{kind}/x", f"ada_p0_{kind}/out")
    assert (AugmentPipe("bgcfn")(x, p=0.0) - out).abs().max() < 5e-6


@pytest.mark.parametrize("pipe", PIPES)
def test_p_0_returns_the_same_tensor_and_draws_nothing(pipe):
    x = torch.randn(3, 4, 8, 8)
    before = torch.get_rng_state()
    assert AugmentPipe(pipe)(x, p=0.0) is x
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("pipe", PIPES)
def test_any_number_of_channels_and_any_p(pipe, channels):
    for p in (0.1, 1.0):
        y = AugmentPipe(pipe)(torch.randn(5, channels, 16, 16), p=p)
        assert y.shape == (5, channels, 16, 16)
        assert y.isfinite().all()


def test_oblong_images_move_without_distortion():
    x = torch.rand(8, 3, 16, 24)
    torch.manual_seed(0)
    assert AugmentPipe("bg")(x, p=1.0).shape == x.shape


def same_seed(*calls):
    results = []
    for call in calls:
        torch.manual_seed(5)
        results.append(call())
    return results


@pytest.mark.parametrize(("channels", "color_channels"), [(4, None), (2, None), (4, 3), (5, 4)])
def test_colour_filter_and_noise_leave_the_label_channel_alone(channels, color_channels):
    x = torch.randn(8, channels, 16, 16)
    moved, augmented = same_seed(lambda: AugmentPipe("bg")(x, p=0.8), lambda: AugmentPipe("bgcfn", color_channels)(x, p=0.8))
    assert torch.equal(moved[:, -1], augmented[:, -1])
    assert not torch.equal(moved[:, :-1], augmented[:, :-1])


def test_image_and_label_channel_move_together():
    x = torch.randn(8, 1, 16, 16).repeat(1, 4, 1, 1)
    y = AugmentPipe("bg")(x, p=1.0)
    assert torch.allclose(y[:, :3], y[:, 3:], atol=1e-6)


def test_equal_seeds_give_equal_pictures():
    x = torch.randn(4, 4, 16, 16)
    first, second = same_seed(lambda: AugmentPipe("bgcfn")(x, p=0.6), lambda: AugmentPipe("bgcfn")(x, p=0.6))
    assert torch.equal(first, second)


def test_samples_that_do_not_move_stay_exactly_as_they_are():
    x = torch.randn(64, 1, 8, 8)
    y = AugmentPipe("bg")(x, p=0.1)
    same = (x == y).flatten(1).all(dim=1)
    assert 10 < same.sum() < 60


def test_first_and_second_derivatives():
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)

    def augment(x):
        torch.manual_seed(3)
        return AugmentPipe("bgcfn")(x, p=0.9).square()

    assert torch.autograd.gradcheck(augment, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(augment, x, fast_mode=True)


def test_pipe_has_no_state_and_rejects_unknown_names():
    assert AugmentPipe("bgc").state_dict() == {}
    with pytest.raises(ValueError, match="bgcfn"):
        AugmentPipe("cutout")


def test_transformations_happen_as_often_as_p_says():
    n, p = 4000, 0.3
    eye = torch.eye(3)
    still = (geometry(Draws(n, p), 64, 64, general=False) == eye).all(2).all(1).double().mean()
    # Kept with 0.3, of these a flip in 1 of 2 and a turn in 3 of 4; a shift nearly always.
    assert still == pytest.approx((1 - p / 2) * (1 - p * 3 / 4) * (1 - p), abs=0.03)
    unchanged = (colour(Draws(n, p), 3, chroma=True) == torch.eye(3, 4)).all(2).all(1).double().mean()
    assert unchanged == pytest.approx((1 - p) ** 4 * (1 - p / 2), abs=0.03)


def test_filter_bank_splits_a_signal_without_loss():
    bank = filter_bank()
    impulse = torch.zeros(bank.shape[1])
    impulse[bank.shape[1] // 2] = 1
    assert torch.allclose(bank.sum(0), impulse, atol=1e-6)
    assert torch.allclose(bank.sum(1), torch.tensor([1.0, 0, 0, 0]), atol=1e-6)  # only the lowest band passes a mean
    assert torch.equal(band_gains(Draws(3, 0.0)), torch.ones(3, 4))


def feed(control, means, batch=16):
    for mean in means:
        share = round((1 + mean) / 2 * batch)
        control.update(torch.tensor([1.0] * share + [-1.0] * (batch - share)), batch)


def test_control_moves_by_the_images_of_an_interval():
    control = AdaptiveAugment(target=0.6, interval=4, ada_kimg=0.64, p=0.5)
    feed(control, [1, 1, 1])
    assert control.p == 0.5
    feed(control, [1])
    assert control.p == pytest.approx(0.5 + 16 * 4 / 640)
    feed(control, [1, 0, 0, 1])  # mean 0.5 is below the target
    assert control.p == pytest.approx(0.5)


def test_control_stays_in_its_range_and_halves():
    control = AdaptiveAugment(interval=1, ada_kimg=0.016, p_range=(0.0, 0.8))
    feed(control, [1, 1])
    assert control.p == 0.8
    control.halve()
    assert control.p == pytest.approx(0.4)
    feed(control, [-1, -1])
    assert control.p == 0.0


def test_control_resumes_in_the_middle_of_an_interval():
    means = [1, 0.25, 0.5, 1, 0.75, 0, 1, 0.5, 1, 1, 1]
    whole, first, second = (AdaptiveAugment(ada_kimg=1) for _ in range(3))
    feed(whole, means)
    feed(first, means[:6])
    assert first.state_dict()["count"] == 2
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    feed(second, means[6:])
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("wrong", [{"interval": 0}, {"ada_kimg": 0}, {"p_range": (0.5, 0.1)}, {"p_range": (0, 2)}])
def test_control_rejects_impossible_settings(wrong):
    with pytest.raises(ValueError, match="interval"):
        AdaptiveAugment(**wrong)
