"""The events that a training emits while it runs: one stream of JSON-able objects (no torch here).

The engine calls an `Emit` with each event; a terminal, a log file, a service or a test receives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, ClassVar


@dataclass(frozen=True)
class Event:
    """Base of all events; `site` is the site's name."""

    kind: ClassVar[str]
    site: str

    def to_json(self) -> dict[str, Any]:
        """Return a plain mapping, in which the key `event` names the kind."""
        return {"event": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Started(Event):
    """A site's training begins, or goes on from `step`."""

    kind: ClassVar[str] = "started"
    step: int
    steps: int
    images: int
    device: str
    strategy: str


@dataclass(frozen=True)
class Step(Event):
    """Training goes on: mean losses since the last such event, and the time left."""

    kind: ClassVar[str] = "step"
    step: int
    steps: int
    losses: dict[str, float]
    images_per_second: float
    eta_seconds: float
    figures: dict[str, float] = field(default_factory=dict)
    """What the strategy says of itself beside its losses: a relay its stage, and the augmentation of its discriminators."""


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint was written."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    path: str
    digest: str


@dataclass(frozen=True)
class Scores(Event):
    """The solver was scored on one test set."""

    kind: ClassVar[str] = "scores"
    test_site: str
    step: int
    scores: dict[str, Any]


@dataclass(frozen=True)
class Samples(Event):
    """A picture was written, of generated images or of predictions."""

    kind: ClassVar[str] = "samples"
    step: int
    path: str


@dataclass(frozen=True)
class Warned(Event):
    """Something happened that a person should know, and that does not stop the training."""

    kind: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True)
class Finished(Event):
    """A site's budget is used up."""

    kind: ClassVar[str] = "finished"
    step: int
    seconds: float


def from_json(data: Mapping[str, Any]) -> Event | None:
    """Return the event that `to_json` gave as a mapping; None for a mapping that is no event or lacks a field.

    A field that has a default may be missing: events of an older version lack it.
    """
    kind = next((c for c in Event.__subclasses__() if c.kind == data.get("event")), None)
    if kind is None:
        return None
    needed = [each.name for each in fields(kind) if each.default_factory is MISSING]
    if not all(name in data for name in needed):
        return None
    return kind(**{each.name: data[each.name] for each in fields(kind) if each.name in data})


Emit = Callable[[Event], None]
Stop = Callable[[], bool]


def ignore(event: Event) -> None:
    """Drop the event: an `Emit` for those who want none."""


def never() -> bool:
    """Return False: a `Stop` that never asks to stop."""
    return False
