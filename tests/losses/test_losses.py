"""Each loss against its plain form (`plain.py`), and what users rely on."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from relay_core.losses import LOSSES, distillation, make_loss, soft_dice
from tests.losses import plain

SHAPES = {"segmentation": (3, 4, 6, 5), "volume": (2, 3, 4, 3, 2), "classification": (12, 4), "two classes": (9, 2)}
SETTINGS = {
    "asymmetric": [{"beta": 1.0}, {"beta": 3.0, "background": True, "smooth": 0.1}],
    "bce": [],
    "cross_entropy": [{"weight": [0.5, 2, 3, 0.1]}],
    "dice": [{"background": True}, {"per_sample": True, "smooth": 0.5}],
    "dice_ce": [{"background": True, "weight": [0.5, 2, 3, 0.1]}],
    "dice_topk": [{"k": 0.35, "background": True}, {"k": 1e-6}, {"k": 1.0}],
    "explog": [{"gamma": 0.7, "weight": [0.5, 2, 3, 0.1], "dice_weight": 0.3, "ce_weight": 0.9}, {"ceiling": 0.1}],
    "focal_tversky": [{"alpha": 0.6, "beta": 0.2, "gamma": 1.5, "background": True, "smooth": 2.0}],
    "generalised_dice": [{"smooth": 0.0}],
    "iou": [{"background": True}, {"per_sample": True, "smooth": 0.5}],
    "mse": [],
    "tversky": [{"alpha": 0.9, "beta": 0.1}, {"background": True, "smooth": 0.1}],
}
IN_ONE = ("asymmetric", "dice", "focal_tversky", "generalised_dice", "iou", "mse", "tversky")
OVERLAP = ("asymmetric", "dice", "focal_tversky", "iou", "tversky")


def batch(shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(shape, generator=draw), torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=draw)


def certain(ids, classes, size=200.0):
    """Logits that leave no doubt, and in float32 no probability either."""
    return size * F.one_hot(ids, classes).movedim(-1, 1).float()


def test_every_loss_has_its_plain_form():
    assert LOSSES.keys() == SETTINGS.keys()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("name", "kwargs"), [(name, kwargs) for name in SETTINGS for kwargs in [{}, *SETTINGS[name]]])
def test_equals_the_plain_form(name, kwargs, shape):
    if "weight" in kwargs:
        kwargs = kwargs | {"weight": kwargs["weight"][: shape[1]]}
    for seed in range(3):
        logits, ids = batch(shape, seed)
        expected = getattr(plain, name)(
            logits.double().reshape(*shape[:2], -1).numpy(), ids.reshape(len(ids), -1).numpy(), **kwargs
        )
        loss = make_loss(name, kwargs)(logits, ids)
        assert loss.shape == ()
        assert float(loss) == pytest.approx(expected, rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [*((name, {}) for name in LOSSES), *((name, {"smooth": 0.0}) for name in (*OVERLAP, "generalised_dice"))],
)
def test_gradients_are_finite_where_all_is_right_or_wrong_or_a_class_is_missing(name, kwargs, shape):
    loss = make_loss(name, kwargs)
    _, ids = batch(shape)
    for truth in (ids, torch.zeros_like(ids), torch.full_like(ids, shape[1] - 1)):
        right = certain(truth, shape[1])
        for logits in (right, -right, right.roll(1, dims=1), torch.zeros_like(right)):
            logits.requires_grad_()
            value = loss(logits, truth)
            (gradient,) = torch.autograd.grad(value, logits)
            assert value.isfinite()
            assert gradient.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", LOSSES)
def test_a_better_prediction_has_a_smaller_loss_and_a_step_down_the_gradient_is_one(name, shape):
    loss = make_loss(name, {})
    logits, ids = batch(shape)
    right = certain(ids, shape[1], 1.0)
    values = [float(loss(scale * right, ids)) for scale in (-4, -1, 0, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, ids), logits)
    assert loss(logits - 0.01 * gradient / gradient.norm(), ids) < loss(logits, ids)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", IN_ONE)
def test_bounds(name, shape):
    logits, ids = batch(shape)
    loss = make_loss(name, {})
    assert 0 <= float(loss(certain(ids, shape[1]), ids)) < 1e-4
    for prediction in (logits, -certain(ids, shape[1]), certain(ids, shape[1]).roll(1, dims=1)):
        assert 0 <= float(loss(prediction, ids)) <= 1


@pytest.mark.parametrize("name", OVERLAP)
def test_the_background_counts_only_where_asked_for_and_always_in_a_classification(name):
    with_it, without = make_loss(name, {"background": True}), make_loss(name, {})
    for shape in SHAPES.values():
        logits, ids = batch(shape)
        same = math.isclose(with_it(logits, ids), without(logits, ids), rel_tol=1e-6)
        assert same == (len(shape) == 2)


def test_soft_dice_is_a_value_a_class_that_counts():
    logits, ids = batch((3, 4, 6, 5))
    assert soft_dice(logits, ids).shape == (3,)
    assert soft_dice(logits, ids, background=True).shape == (4,)
    assert soft_dice(logits, ids, per_sample=True).shape == (3, 3)
    assert soft_dice(*batch((12, 4))).shape == (4,)
    one = soft_dice(logits[1:2], ids[1:2])
    torch.testing.assert_close(soft_dice(logits, ids, per_sample=True)[1], one)


def test_a_smoothed_class_that_is_nowhere_counts_as_found():
    ids = torch.zeros(2, 8, 8, dtype=torch.long)
    assert torch.equal(soft_dice(certain(ids, 3), ids), torch.ones(2))


def test_relations_between_the_losses():
    logits, ids = batch((3, 4, 6, 5))

    def value(name, **kwargs):
        return float(make_loss(name, kwargs)(logits, ids))

    assert value("tversky", alpha=0.5, beta=0.5, smooth=0.5) == pytest.approx(value("dice"))
    assert value("tversky", alpha=1, beta=1) == pytest.approx(value("iou"))
    assert value("asymmetric", beta=1) == pytest.approx(value("dice"))
    assert value("focal_tversky", gamma=1) == pytest.approx(value("tversky"))
    assert value("dice_topk", k=1) == pytest.approx(value("dice_ce"))
    assert value("dice_topk", k=0.1) > value("dice_topk", k=0.5) > value("dice_ce")
    assert value("iou") > value("dice")


@pytest.mark.parametrize("name", ["tversky", "focal_tversky", "asymmetric"])
def test_missing_pixels_cost_more_than_spare_ones(name):
    """As many pixels too few as too many, and the same with the weights the other way round."""
    truth = torch.zeros(1, 16, 16, dtype=torch.long)
    truth[:, :, :8] = 1
    few, many = truth.roll(-2, dims=2) * truth, (truth + truth.roll(2, dims=2)).clamp(max=1)
    swapped = {"beta": 0.5} if name == "asymmetric" else {"alpha": 0.7, "beta": 0.3}
    for kwargs, missed_is_worse in (({}, True), (swapped, False)):
        loss = make_loss(name, kwargs)
        assert (loss(certain(few, 2), truth) > loss(certain(many, 2), truth)) == missed_is_worse


def test_generalised_dice_weighs_a_small_region_as_much_as_a_large_one():
    truth, nothing = (torch.zeros(1, 16, 16, dtype=torch.long) for _ in range(2))
    truth[:, 7:9, 7:9] = 1
    assert make_loss("generalised_dice", {"smooth": 0.0})(certain(nothing, 2), truth) > 0.9
    assert make_loss("mse", {})(certain(nothing, 2), truth) < 0.02


@pytest.mark.parametrize("name", ["cross_entropy", "dice_ce", "explog"])
def test_weights_are_those_of_the_true_class(name):
    logits, ids = batch((3, 4, 6, 5))
    values = [make_loss(name, {"weight": weight})(logits, ids) for weight in (None, [2, 2, 2, 2], [1, 5, 1, 1])]
    torch.testing.assert_close(values[0], values[1])
    assert not torch.isclose(values[0], values[2])
    only = make_loss("cross_entropy", {"weight": [0, 1, 0, 0]})(logits, ids)
    torch.testing.assert_close(only, F.cross_entropy(logits, ids, reduction="none")[ids == 1].mean())


def test_unknown_losses_are_refused():
    with pytest.raises(KeyError, match="dise"):
        make_loss("dise", {})


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_distillation_equals_the_plain_form_and_teaches_the_student_alone(shape):
    (student, _), (teacher, _) = batch(shape, 1), batch(shape, 2)
    s, t = (plain.softmax(logits.double().numpy() / 2) for logits in (student, teacher))
    student.requires_grad_()
    teacher.requires_grad_()
    loss = distillation(student, teacher, tau=2)
    assert loss.item() == pytest.approx(np.mean(np.sum(-t * np.log(s), axis=1)), rel=1e-5)
    loss.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
