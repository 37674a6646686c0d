"""The solver's augmentation: labels stay labels and stay with their image, and each operation does what it says."""

import colorsys

import pytest
import torch

from relay_core.data import augment_ops as ops
from relay_core.data.augment import BLUR, COLOUR, GEOMETRY, SolverAugment, _Plan

KINDS = ("published", "standard")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def batch(n=16, channels=3, size=16):
    return torch.rand(n, channels, size, size) * 2 - 1, torch.randint(0, 3, (n, size, size))


def test_none_returns_its_input_and_draws_nothing():
    images, labels = batch()
    before = torch.get_rng_state()
    same_images, same_labels = SolverAugment("none")(images, labels)
    assert same_images is images
    assert same_labels is labels
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_ranges_and_ids_survive_and_the_input_is_untouched(kind, channels):
    augment = SolverAugment(kind)
    for _ in range(5):
        images, labels = batch(channels=channels)
        kept = images.clone(), labels.clone()
        new_images, new_labels = augment(images, labels)
        assert torch.equal(images, kept[0])
        assert torch.equal(labels, kept[1])
        assert (new_images.shape, new_images.dtype) == (images.shape, images.dtype)
        assert (new_labels.shape, new_labels.dtype) == (labels.shape, labels.dtype)
        assert new_images.abs().max() <= 1
        assert set(new_labels.unique().tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_label_types_and_large_ids(dtype):
    labels = torch.full((16, 16, 16), 255, dtype=dtype)
    moved = SolverAugment("standard")(batch()[0], labels)[1]
    assert torch.equal(moved, labels)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_of_whole_images_are_left_alone(kind):
    labels = torch.arange(16)
    assert torch.equal(SolverAugment(kind)(batch()[0], labels)[1], labels)


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (13, 11)])
@pytest.mark.parametrize("kind", KINDS)
def test_image_and_label_move_together(kind, size, monkeypatch):
    for name in ("invert", "brightness", "gamma", "noise", "jpeg", "sharpen", "motion_blur", "gaussian_blur"):
        monkeypatch.setattr(ops, name, lambda x, *_: x)
    labels = torch.zeros(64, *size, dtype=torch.long)
    labels[:, 3:9, 4:8] = 1
    images = labels[:, None].float() * 2 - 1
    moved, moved_labels = SolverAugment(kind)(images, labels)
    changed = (moved_labels != labels).flatten(1).any(dim=1)
    assert changed.sum() > 8
    # The nearest of four pixels has at least a quarter of the bilinear weight, so these two must agree.
    clear = moved[:, 0].abs() > 0.51
    assert clear.float().mean() > 0.8
    assert torch.equal((moved[:, 0] > 0)[clear], (moved_labels == 1)[clear])


def test_published_borders_are_black_background_and_standard_ones_reflect():
    images, labels = torch.ones(64, 3, 16, 16), torch.ones(64, 16, 16, dtype=torch.long)
    assert (SolverAugment("published")(images, labels)[1] == 0).any()
    assert (SolverAugment("standard")(images, labels)[1] == 1).all()


def test_standard_never_inverts():
    images, labels = torch.full((256, 3, 8, 8), 0.9), torch.zeros(256, 8, 8, dtype=torch.long)
    assert SolverAugment("standard")(images, labels)[0].mean(dim=(1, 2, 3)).min() > 0
    assert SolverAugment("published")(images, labels)[0].mean(dim=(1, 2, 3)).min() < -0.5


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_equal_batches_and_the_draw_does_not_depend_on_the_images(kind):
    images, labels = batch()
    results, states = [], []
    for x in (images, images, -images):
        torch.manual_seed(7)
        results.append(SolverAugment(kind)(x, labels))
        states.append(torch.get_rng_state())
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[2][1])
    assert torch.equal(states[0], states[2])


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_together_draw_what_one_does(kind, monkeypatch):
    monkeypatch.setattr(ops, "jpeg", lambda x, _: x)  # it would turn a rounding error of a convolution into a step
    images, labels = batch(16)
    torch.manual_seed(4)
    whole = SolverAugment(kind)(images, labels)
    monkeypatch.setattr("relay_core.distributed.world", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr("relay_core.distributed.rank", lambda rank=rank: rank)
        torch.manual_seed(4)
        part = SolverAugment(kind)(images[rank::2], labels[rank::2])
        assert torch.allclose(part[0], whole[0][rank::2], atol=1e-5)
        assert torch.equal(part[1], whole[1][rank::2])


def test_groups_are_used_as_often_as_published():
    plan = _Plan(4000, "published")
    for group, share, operations in ((COLOUR, 0.5, 1.5), (BLUR, 0.3, 2.0), (GEOMETRY, 0.5, 2.0)):
        count = torch.stack([plan.uses[name] for name in group]).sum(dim=0)
        assert (count > 0).float().mean() == pytest.approx(share, abs=0.03)
        assert count[count > 0].float().mean() == pytest.approx(operations, abs=0.05)


def test_unknown_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match="published"):
        SolverAugment("strong")


def test_hue_and_saturation_agree_with_colorsys():
    x, hue, saturation = torch.rand(2, 3, 3, 4), torch.tensor([1.4, 0.6]), torch.tensor([0.5, 1.5])
    y = ops.hue_saturation(x, hue, saturation)
    for n in range(2):
        before, after = x[n].flatten(1).T.tolist(), y[n].flatten(1).T.tolist()
        for rgb, got in zip(before, after, strict=True):
            h, s, v = colorsys.rgb_to_hsv(*rgb)
            expected = colorsys.hsv_to_rgb(h * float(hue[n]) % 1, min(s * float(saturation[n]), 1), v)
            assert got == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("operation", "strengths"),
    [(ops.motion_blur, (4.0, 0.7)), (ops.gaussian_blur, (0.5,)), (ops.sharpen, (0.8,)), (ops.jpeg, (90.0,))],
)
def test_filters_keep_flat_pictures(operation, strengths):
    x = torch.full((2, 3, 9, 10), 128 / 255)
    y = operation(x, *(torch.full((2,), s) for s in strengths))
    assert torch.allclose(y, x, atol=1e-5)


def test_strengths_belong_to_their_samples():
    x = torch.rand(1, 3, 8, 8).repeat(2, 1, 1, 1)
    assert torch.allclose(ops.gaussian_blur(x, torch.tensor([0.0, 0.5]))[0], x[0], atol=1e-6)
    assert torch.allclose(ops.sharpen(x, torch.tensor([0.0, 0.5]))[0], x[0], atol=1e-6)
    loss = (ops.jpeg(x, torch.tensor([30.0, 95.0])) - x).abs().mean(dim=(1, 2, 3))
    assert 0 < loss[1] < loss[0]


def test_motion_blur_spreads_a_point_along_its_line():
    x = torch.zeros(1, 1, 7, 7)
    x[..., 3, 3] = 1
    y = ops.motion_blur(x, torch.tensor([3.0]), torch.tensor([0.0]))[0, 0]
    assert y[3].sum() == pytest.approx(1, abs=1e-6)
    assert y[3, 2:5].min() > 0.2


def test_noise_is_standard_normal_times_sigma_and_follows_its_seed():
    x, sigma = torch.zeros(3, 3, 32, 32), torch.full((3,), 0.05)
    y = ops.noise(x, sigma, torch.tensor([0.1, 0.1, 0.7])) / 0.05
    assert torch.equal(y[0], y[1])
    assert y.mean() == pytest.approx(0, abs=0.05)
    assert y.std() == pytest.approx(1, abs=0.05)
    assert y.abs().max() < 6
    assert (y[0] * y[2]).mean() == pytest.approx(0, abs=0.06)
    assert (y[..., 1:] * y[..., :-1]).mean() == pytest.approx(0, abs=0.06)
