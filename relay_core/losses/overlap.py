"""Losses of the overlap of soft regions. Shape everywhere: logits (N, K, ...), ids (N, ...) in 0..K-1 -> scalar in 0..1.

A class's probabilities p and its one-hot target y overlap in TP = sum p y; FP = sum p (1 - y) is too much and
FN = sum (1 - p) y is missed, over the whole batch or over each sample. `background` says whether class 0 counts, and
`smooth`, in pixels, is added to numerator and denominator, so that a class that is neither wanted nor predicted scores
1. Classes are averaged. A classification (logits (N, K)) has no background: every class counts there, whatever
`background` says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relay_core.losses.pixelwise import one_hot

_TINY = 1e-30
"""Least denominator, because without `smooth` a class that is neither wanted nor predicted would give 0 / 0."""


def _regions(logits: Tensor, ids: Tensor, background: bool) -> tuple[Tensor, Tensor]:
    """Return probabilities and one-hot targets of the classes that count, both (N, classes, pixels)."""
    first = 0 if background or logits.ndim == 2 else 1
    probability = logits.softmax(dim=1)
    target = one_hot(probability, ids)
    shape = (*logits.shape[:2], -1)
    return probability.reshape(shape)[:, first:], target.reshape(shape)[:, first:]


def _axes(per_sample: bool) -> tuple[int, ...]:
    return (2,) if per_sample else (0, 2)


def soft_dice(
    logits: Tensor,
    ids: Tensor,
    background: bool = False,
    smooth: float = 1.0,
    per_sample: bool = False,
    square: bool = False,
) -> Tensor:
    """Return the soft Dice of each class that counts, (2 |p y| + smooth) / (|p| + |y| + smooth); `square`: |p^2| + |y^2|.

    Shape: over the whole batch (classes,), or with `per_sample` (N, classes).
    """
    p, y = _regions(logits, ids, background)
    axes = _axes(per_sample)
    total = (p.square() if square else p).sum(dim=axes) + y.sum(dim=axes)
    return (2 * (p * y).sum(dim=axes) + smooth) / (total + smooth).clamp(min=_TINY)


def dice(logits: Tensor, ids: Tensor, background: bool = False, smooth: float = 1.0, per_sample: bool = False) -> Tensor:
    """Return one minus the mean soft Dice (Milletari 2016, arXiv 1606.04797, without its squares)."""
    return 1 - soft_dice(logits, ids, background, smooth, per_sample).mean()


def generalised_dice(logits: Tensor, ids: Tensor, smooth: float = 1.0) -> Tensor:
    """Return the generalised Dice loss (Sudre 2017, arXiv 1707.03237), all classes weighted by 1 / volume^2 in one Dice.

    The background counts: its volume gives it a small weight. A class that is not in the batch, whose weight would be
    infinite, gets the weight of the rarest class that is in it. Weights are relative to the largest one, which leaves the
    quotient unchanged and makes the unit of `smooth` a pixel of the rarest class.
    """
    p, y = _regions(logits, ids, background=True)
    volume = y.sum(dim=(0, 2))
    rarest = volume.where(volume > 0, torch.inf).min()
    weight = (rarest / volume.clamp(min=rarest)) ** 2
    overlap, total = (weight * (p * y).sum(dim=(0, 2))).sum(), (weight * (p.sum(dim=(0, 2)) + volume)).sum()
    return 1 - (2 * overlap + smooth) / (total + smooth)


def _similarity(
    logits: Tensor,
    ids: Tensor,
    fp_weight: float,
    fn_weight: float,
    background: bool,
    smooth: float,
    per_sample: bool = False,
) -> Tensor:
    """Return (TP + smooth) / (TP + fp_weight FP + fn_weight FN + smooth) of each class that counts.

    The result is never above 1, not even by rounding.
    """
    p, y = _regions(logits, ids, background)
    axes = _axes(per_sample)
    overlap = (p * y).sum(dim=axes) + smooth
    wrong = fp_weight * (p * (1 - y)).sum(dim=axes) + fn_weight * ((1 - p) * y).sum(dim=axes)
    return overlap / (overlap + wrong).clamp(min=_TINY)


def iou(logits: Tensor, ids: Tensor, background: bool = False, smooth: float = 1.0, per_sample: bool = False) -> Tensor:
    """Return one minus the mean intersection over union, (TP + smooth) / (TP + FP + FN + smooth) (Rahman 2016)."""
    return 1 - _similarity(logits, ids, 1, 1, background, smooth, per_sample).mean()


def tversky(
    logits: Tensor,
    ids: Tensor,
    alpha: float = 0.3,
    beta: float = 0.7,
    background: bool = False,
    smooth: float = 1.0,
) -> Tensor:
    """Return one minus the mean Tversky index (Salehi 2017, arXiv 1706.05721); `alpha` weighs FP, `beta` FN.

    The index is (TP + smooth) / (TP + alpha FP + beta FN + smooth): beta above alpha favours a region that is too large
    over one that is too small.
    """
    return 1 - _similarity(logits, ids, alpha, beta, background, smooth).mean()


def focal_tversky(
    logits: Tensor,
    ids: Tensor,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 0.75,
    background: bool = False,
    smooth: float = 1.0,
) -> Tensor:
    """Return the mean over classes of (1 - Tversky index)^gamma (Abraham 2018, arXiv 1810.07842).

    `gamma` is the exponent itself; the paper writes 1 / gamma with gamma = 4/3, which is the default here, and its alpha
    weighs FN. Below 1 the gradient grows without bound as a class becomes perfect, so 1 - index is clamped at 1e-6.
    """
    return (1 - _similarity(logits, ids, alpha, beta, background, smooth)).clamp(min=1e-6).pow(gamma).mean()


def asymmetric(logits: Tensor, ids: Tensor, beta: float = 1.5, background: bool = False, smooth: float = 1.0) -> Tensor:
    """Return one minus the mean F_beta similarity (Hashemi 2018, arXiv 1803.11078); above 1, `beta` favours recall.

    The similarity is ((1 + beta^2) TP + smooth) / ((1 + beta^2) TP + beta^2 FN + FP + smooth); beta = 1 is Dice.
    """
    scale = 1 + beta**2
    return 1 - _similarity(logits, ids, 1 / scale, beta**2 / scale, background, smooth / scale).mean()
