"""What of a site's numbers does not leave it: those that few patients stand behind, and so say much of each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relay_core.bundle.values import MIN_COUNT
from relay_core.config import RelayState, StrategyFacts
from relay_core.metrics import WITHHELD


def withheld_scores(means: Mapping[str, Any]) -> dict[str, Any]:
    """Return a test set's means as they leave: None for each where they are of fewer than `MIN_COUNT` patients.

    The means have `num_samples`, the number of patients; scores that do not say it are withheld. Units stay.
    """
    if (means.get("num_samples") or 0) >= MIN_COUNT:
        return dict(means)
    return {**{key: value if isinstance(value, str) else None for key, value in means.items()}, WITHHELD: MIN_COUNT}


def withheld_class_counts(state: Mapping[str, Any], facts: StrategyFacts) -> dict[str, Any]:
    """Return a strategy's state in which each site's images of a class, where there are any, are `MIN_COUNT` or more.

    What a rare class is given is taken from the most frequent one, so that the sum does not tell.
    """
    if not issubclass(facts.handed_over, RelayState):
        return dict(state)
    banks = {
        key: {site: _with_rare_classes_hidden(slot) for site, slot in state[key].items()} for key in ("previous", "current")
    }
    return {**state, **banks}


def _with_rare_classes_hidden(slot: Mapping[str, Any]) -> dict[str, Any]:
    if not slot.get("classes"):
        return dict(slot)
    counts = [max(count, MIN_COUNT) if count else 0 for count in slot["classes"]]
    largest = counts.index(max(counts))
    counts[largest] = max(MIN_COUNT, counts[largest] - sum(counts) + sum(slot["classes"]))
    return {**slot, "classes": counts}


def withheld_statistics(looks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sites' feature statistics without those of fewer than `MIN_COUNT` images."""
    return {site: statistics for site, statistics in looks.items() if statistics["images"] >= MIN_COUNT}
