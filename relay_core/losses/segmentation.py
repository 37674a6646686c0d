"""Losses of segmentation. Shape everywhere: logits (N, K, H, W), ids (N, H, W) in 0..K-1 -> scalar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def _weight(values: Sequence[float] | None, like: Tensor) -> Tensor | None:
    return None if values is None else torch.as_tensor(values, dtype=like.dtype, device=like.device)


def cross_entropy(logits: Tensor, ids: Tensor, weight: Sequence[float] | None = None) -> Tensor:
    """Cross entropy over pixels, optionally weighted by class."""
    return F.cross_entropy(logits, ids, _weight(weight, logits))


def soft_dice(logits: Tensor, ids: Tensor, background: bool = False, smooth: float = 1.0) -> Tensor:
    """Soft Dice of each class over the whole batch, (2 |p y| + smooth) / (|p| + |y| + smooth); shape (K,) or (K - 1,)."""
    probability = logits.softmax(dim=1)
    target = F.one_hot(ids, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    if not background:
        probability, target = probability[:, 1:], target[:, 1:]
    overlap = (probability * target).sum(dim=(0, 2, 3))
    total = probability.sum(dim=(0, 2, 3)) + target.sum(dim=(0, 2, 3))
    return (2 * overlap + smooth) / (total + smooth)


def dice(logits: Tensor, ids: Tensor, background: bool = False, smooth: float = 1.0) -> Tensor:
    """One minus the mean soft Dice."""
    return 1 - soft_dice(logits, ids, background, smooth).mean()


def dice_ce(logits: Tensor, ids: Tensor, weight: Sequence[float] | None = None, background: bool = False) -> Tensor:
    """Soft Dice loss plus cross entropy."""
    return dice(logits, ids, background) + cross_entropy(logits, ids, weight)


def explog(
    logits: Tensor,
    ids: Tensor,
    gamma: float = 0.3,
    weight: Sequence[float] | None = None,
    dice_weight: float = 0.8,
    ce_weight: float = 0.2,
    ceiling: float = 1 - 1e-4,
) -> Tensor:
    """Exponential logarithmic loss (Wong 2018, arXiv 1809.00076), with a plain cross entropy term.

    `dice_weight * (-log d)^gamma + ce_weight * CE`, d the mean soft Dice of the foreground classes. For gamma < 1 the
    gradient grows without bound as d reaches 1, so d is clamped at `ceiling`; 1 gives the published form.
    """
    d = soft_dice(logits, ids).mean().clamp(1e-6, ceiling)
    return dice_weight * (-d.log()) ** gamma + ce_weight * cross_entropy(logits, ids, weight)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "dice_ce": dice_ce,
    "explog": explog,
}
"""By the name that a run file gives."""


def make_loss(name: str, kwargs: dict[str, Any]) -> Loss:
    """The loss `name` with its settings bound."""
    return partial(LOSSES[name], **kwargs)


def distillation(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Soft cross entropy between two solvers' logits (N, K, H, W), both at temperature tau (Hinton 2015, 1503.02531).

    Summed over classes, averaged over samples and pixels; no gradient reaches the teacher.
    """
    target = (teacher.detach() / tau).softmax(dim=1)
    return -(target * (student / tau).log_softmax(dim=1)).sum(dim=1).mean()
