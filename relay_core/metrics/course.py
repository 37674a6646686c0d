"""What a solver scores against what its training has cost by then. Loads no torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """A training at one site after `step` of `steps` steps."""

    site: str
    step: int
    steps: int
    seconds: float
    """Seconds of training at this site, evaluations left out."""
    operations: float
    """Floating-point operations of the training at this site; `relay_core.engine.Course` says which."""
    scores: Mapping[str, float | None]
    """The main metric of the solver on the test set of each site that it has learned from, by site."""


def last_points(points: Sequence[Point]) -> list[Point]:
    """Return the last point of each site, in the order of the sites."""
    return list({point.site: point for point in points}.values())


def cost_to_quality(points: Sequence[Point]) -> list[tuple[float, float, float | None]]:
    """Return, for each point, seconds and operations of all sites up to it, and the mean score over the sites seen by then.

    A model that learns anew at each site counts at each with its own score there. The mean is None where a score is missing.
    """
    course: list[tuple[float, float, float | None]] = []
    done: dict[str, Point] = {}
    seen: dict[str, float | None] = {}
    for point in points:
        done[point.site] = point
        seen |= point.scores
        present = [score for score in seen.values() if score is not None]
        mean = statistics.fmean(present) if present and len(present) == len(seen) else None
        course.append((sum(p.seconds for p in done.values()), sum(p.operations for p in done.values()), mean))
    return course
