"""Define the settings of the losses that a run file may name (METHOD: see `relay_core.losses` for the mathematics)."""

from __future__ import annotations

from pydantic import Field

from relay_core.config.base import Settings
from relay_core.config.registry import Choice, Entry, Registry


class LossKwargs(Settings):
    """What every loss has."""


class DiceTerm(Settings):
    """The Dice within another loss."""

    background: bool = False
    """Count the background class too."""
    smooth: float = Field(default=1.0, ge=0)
    """Added to numerator and denominator."""
    per_sample: bool = False
    """Dice of each sample, then the mean, instead of the whole batch as one."""
    square: bool = False
    """Square the probabilities in the denominator."""
    generalised: bool = False
    """Generalised Dice, whose classes weigh the less, the larger they are; of the settings above only `smooth` counts."""


class ExpLogKwargs(LossKwargs):
    """Exponential logarithmic loss of soft Dice, plus cross entropy (the paper's)."""

    gamma: float = Field(default=0.3, gt=0)
    """Exponent of the Dice term."""
    weight: list[float] | None = None
    """Cross entropy weight of each class."""
    dice_weight: float = 0.8
    """Factor of the Dice term."""
    ce_weight: float = 0.2
    """Factor of the cross entropy term."""
    ceiling: float = Field(default=1 - 1e-4, gt=0, le=1)
    """Dice is clamped here, where the gradient of the Dice term would grow without bound; 1: the published form."""
    dice: DiceTerm | None = None
    """The Dice term; none: soft Dice of the foreground over the whole batch."""


class CrossEntropyKwargs(LossKwargs):
    """Cross entropy."""

    weight: list[float] | None = None
    """Weight of each class."""


class MseKwargs(LossKwargs):
    """Mean squared error of probabilities."""


class BceKwargs(LossKwargs):
    """Binary cross entropy of each class against the others."""


class OverlapKwargs(LossKwargs):
    """What losses of overlap have."""

    background: bool = False
    """Count the background class too."""
    smooth: float = Field(default=1.0, ge=0)
    """Added to numerator and denominator."""


class DiceKwargs(OverlapKwargs):
    """Soft Dice."""

    per_sample: bool = False
    """Dice of each sample, then the mean, instead of the whole batch as one."""


class GeneralisedDiceKwargs(LossKwargs):
    """Generalised Dice: classes weigh the less, the larger they are."""

    smooth: float = Field(default=1.0, ge=0)
    """Added to numerator and denominator."""


class IouKwargs(DiceKwargs):
    """Soft intersection over union."""


class TverskyKwargs(OverlapKwargs):
    """Tversky: false positives and false negatives weigh differently."""

    alpha: float = Field(default=0.3, ge=0)
    """Weight of false positives."""
    beta: float = Field(default=0.7, ge=0)
    """Weight of false negatives."""


class FocalTverskyKwargs(TverskyKwargs):
    """Focal Tversky: a power of the Tversky loss."""

    gamma: float = Field(default=0.75, gt=0)
    """The power."""


class AsymmetricKwargs(OverlapKwargs):
    """Asymmetric similarity (F-beta)."""

    beta: float = Field(default=1.5, gt=0)
    """How much more recall counts than precision."""


class DiceCeKwargs(LossKwargs):
    """Soft Dice plus cross entropy."""

    weight: list[float] | None = None
    """Cross entropy weight of each class."""
    background: bool = False
    """Count the background class in the Dice term too."""


class DiceTopkKwargs(LossKwargs):
    """Soft Dice plus the cross entropy of the hardest pixels."""

    k: float = Field(default=0.1, gt=0, le=1)
    """Share of the pixels that count."""
    background: bool = False
    """Count the background class in the Dice term too."""


_KINDS: dict[str, type[LossKwargs]] = {
    "explog": ExpLogKwargs,
    "cross_entropy": CrossEntropyKwargs,
    "mse": MseKwargs,
    "bce": BceKwargs,
    "dice": DiceKwargs,
    "generalised_dice": GeneralisedDiceKwargs,
    "iou": IouKwargs,
    "tversky": TverskyKwargs,
    "focal_tversky": FocalTverskyKwargs,
    "asymmetric": AsymmetricKwargs,
    "dice_ce": DiceCeKwargs,
    "dice_topk": DiceTopkKwargs,
}
LOSSES = Registry(
    "loss", "relay_core.losses", LossKwargs,
    {name: Entry(kwargs, f"relay_core.losses:{name}") for name, kwargs in _KINDS.items()},
)  # fmt: skip
"""Losses by name."""


class LossSettings(Choice):
    """The loss of the solver."""

    registry = LOSSES
    name: str = "explog"
