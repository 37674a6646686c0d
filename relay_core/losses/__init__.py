"""Provide losses by name: functions of class logits and class ids.

Shape everywhere: logits (N, K, ...), ids (N, ...) in 0..K-1, with any number of spatial axes -> a scalar. Without
spatial axes, (N, K) and (N,), they are losses of classification.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from relay_core.config import LOSSES
from relay_core.losses.combined import dice_ce, dice_topk, explog
from relay_core.losses.levels import at_size, over_levels
from relay_core.losses.overlap import (
    asymmetric,
    dice,
    focal_tversky,
    generalised_dice,
    iou,
    soft_dice,
    tversky,
)
from relay_core.losses.partial_labels import collapsed, completed, marginal, regrouped
from relay_core.losses.pixelwise import bce, cross_entropy, distillation, mse

__all__ = [
    "LOSSES",
    "Loss",
    "asymmetric",
    "at_size",
    "bce",
    "collapsed",
    "completed",
    "cross_entropy",
    "dice",
    "dice_ce",
    "dice_topk",
    "distillation",
    "explog",
    "focal_tversky",
    "generalised_dice",
    "iou",
    "make_loss",
    "marginal",
    "mse",
    "over_levels",
    "regrouped",
    "soft_dice",
    "tversky",
]

Loss = Callable[[Tensor, Tensor], Tensor]


def make_loss(name: str, kwargs: dict[str, Any]) -> Loss:
    """Return the loss `name`, built in or a plug-in's, with its settings `kwargs` bound.

    Raises:
        KeyError: if there is no loss of that name.
    """
    return partial(LOSSES.load(name), **kwargs)
