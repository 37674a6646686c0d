"""What a history says of differentially private training: what it is worth is stated by the site, and signed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relay_core.bundle.values import is_count, is_number

_MOST = 1000
"""Most kinds of steps of one training."""


def is_privacy_fact(value: Any) -> bool:
    """Return whether a value is what a checkpoint says of private training (`strategies.Privacy.facts`)."""
    return (
        isinstance(value, dict)
        and value.keys() == {"unit", "units", "epsilon", "delta", "max_grad_norm", "spent"}
        and value["unit"] in ("patient", "image")
        and is_count(value["units"])
        and is_number(value["epsilon"])
        and value["epsilon"] >= 0
        and all(is_number(value[key]) and value[key] > 0 for key in ("delta", "max_grad_norm"))
        and value["delta"] < 1
        and isinstance(value["spent"], list)
        and len(value["spent"]) <= _MOST
        and all(map(_is_spent, value["spent"]))
    )


def _is_spent(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4:
        return False
    noise, rate, updates, steps = value
    return (
        is_number(noise) and noise > 0 and is_number(rate) and 0 < rate <= 1
        and all(is_count(number) and number > 0 for number in (updates, steps))
    )  # fmt: skip


def privacy_words(fact: Mapping[str, Any] | None) -> str:
    """Return what a history adds of private training, for people; nothing where there was none."""
    if fact is None:
        return ""
    return (
        f"; trained with differential privacy for each {fact['unit']} (an experiment): epsilon {fact['epsilon']:g} at delta "
        f"{fact['delta']:g}"
    )
