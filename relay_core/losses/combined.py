"""Losses that add Dice and cross entropy. Shape everywhere: logits (N, K, ...), ids (N, ...) in 0..K-1 -> scalar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from relay_core.losses import overlap
from relay_core.losses.overlap import generalised_dice, soft_dice
from relay_core.losses.pixelwise import cross_entropy


def dice_ce(logits: Tensor, ids: Tensor, weight: Sequence[float] | None = None, background: bool = False) -> Tensor:
    """Return soft Dice loss plus cross entropy (nnU-Net: Isensee 2018, arXiv 1809.10486), the latter weighted by class."""
    return overlap.dice(logits, ids, background) + cross_entropy(logits, ids, weight)


def dice_topk(logits: Tensor, ids: Tensor, k: float = 0.1, background: bool = False) -> Tensor:
    """Return soft Dice loss plus the mean cross entropy of the share `k` (0..1) of the batch's hardest pixels.

    At least one pixel counts; with k = 1 it equals `dice_ce` without weights. (Top-k: Wu 2016, arXiv 1605.06885.)
    """
    hardness = F.cross_entropy(logits, ids, reduction="none").flatten()
    hardest = hardness.topk(max(1, round(k * len(hardness)))).values
    return overlap.dice(logits, ids, background) + hardest.mean()


def explog(
    logits: Tensor,
    ids: Tensor,
    gamma: float = 0.3,
    weight: Sequence[float] | None = None,
    dice_weight: float = 0.8,
    ce_weight: float = 0.2,
    ceiling: float = 1 - 1e-4,
    dice: Mapping[str, Any] | None = None,
) -> Tensor:
    """Return the exponential logarithmic loss (Wong 2018, arXiv 1809.00076), with a plain cross entropy term.

    It is `dice_weight * (-log d)^gamma + ce_weight * CE` with d the mean soft Dice of the foreground classes, or what
    `dice`, the settings of `DiceTerm`, says. For gamma < 1 the gradient grows without bound as d reaches 1, so d is clamped
    at `ceiling`; 1 gives the published form.
    """
    settings = dict(dice or {})
    if settings.pop("generalised", False):
        d = 1 - generalised_dice(logits, ids, settings["smooth"])
    else:
        d = soft_dice(logits, ids, **settings).mean()
    d = d.clamp(1e-6, ceiling)
    return dice_weight * (-d.log()) ** gamma + ce_weight * cross_entropy(logits, ids, weight)
