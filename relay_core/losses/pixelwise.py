"""Losses that are means over pixels. Shape everywhere: logits (N, K, ...), ids (N, ...) in 0..K-1 -> scalar."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot(logits: Tensor, ids: Tensor) -> Tensor:
    """Encode class ids (N, ...) as 0 and 1 in the shape and type of the logits (N, K, ...)."""
    return F.one_hot(ids, logits.shape[1]).movedim(-1, 1).to(logits.dtype)


def cross_entropy(logits: Tensor, ids: Tensor, weight: Sequence[float] | None = None) -> Tensor:
    """Return the cross entropy; with `weight` (K values) the mean over pixels is weighted by the true class."""
    factors = None if weight is None else torch.as_tensor(weight, dtype=logits.dtype, device=logits.device)
    return F.cross_entropy(logits, ids, factors)


def mse(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the mean squared error (0..1) of softmax probabilities against the one-hot target, over pixels and classes."""
    return F.mse_loss(logits.softmax(dim=1), one_hot(logits, ids))


def bce(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the mean binary cross entropy of each class's logit, through its own sigmoid, against the one-hot target."""
    return F.binary_cross_entropy_with_logits(logits, one_hot(logits, ids))


def distillation(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Return the soft cross entropy of two solvers' logits (N, K, ...), both at temperature tau (Hinton 2015, 1503.02531).

    It is summed over classes and averaged over samples and pixels; no gradient reaches the teacher.
    """
    target = (teacher.detach() / tau).softmax(dim=1)
    return -(target * (student / tau).log_softmax(dim=1)).sum(dim=1).mean()
