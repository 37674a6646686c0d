"""Where the reference has the loss too, the numbers are its numbers."""

import torch

from relay_core.losses import distillation, make_loss
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
