import pytest
import torch

from relay_core.losses import LOSSES, distillation, make_loss
from tests.models.test_published import values
from tests.reference import needs_reference


@needs_reference
def test_explog_and_its_gradient_are_the_published_ones():
    v = values("explog")
    logits = v["logits"].requires_grad_()
    loss = make_loss("explog", {"gamma": 0.3, "weight": [1, 2, 2]})(logits, v["y"].long())
    torch.testing.assert_close(loss, v["loss"])
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], v["grad"], rtol=1e-4, atol=1e-7)


@needs_reference
def test_distillation_and_its_gradient_are_the_published_ones():
    v = values("distil")
    student = v["student"].requires_grad_()
    loss = distillation(student, v["teacher"], tau=2)
    torch.testing.assert_close(loss, v["loss"])
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], v["grad"], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_a_better_prediction_has_a_smaller_loss_and_a_perfect_one_a_finite_gradient(name):
    ids = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    right = torch.nn.functional.one_hot(ids, 3).movedim(-1, 1).float()
    loss = make_loss(name, {})
    assert loss(right * 3, ids) < loss(right, ids) < loss(-right, ids)
    perfect = (right * 200).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(perfect, ids), perfect)
    assert gradient.isfinite().all()
