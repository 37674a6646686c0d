"""What a training writes and says along its way: checkpoints, losses, images a second."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relay_core import distributed, events
from relay_core.engine import checkpoint
from relay_core.engine.checkpoint import Checkpoint
from relay_core.engine.stream import Stream
from relay_core.strategies import Strategy

if TYPE_CHECKING:
    from relay_core.engine.train import SiteTraining


@dataclass
class Saver:
    """Writes the checkpoints of a training, in the first process only."""

    site: SiteTraining
    strategy: Strategy
    stream: Stream
    steps: int
    solver_steps: int
    origin: dict[str, Any]
    """Where the model comes from; see `relay_core.engine.origin`."""
    last: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Return whether it is time for a checkpoint; only the first process writes, in others it is never time."""
        return distributed.rank() == 0 and time.monotonic() - self.last >= self.site.settings.train.checkpoint_seconds

    def save(self, step: int) -> Checkpoint:
        """Write a checkpoint at `step` and return it; processes other than the first only make it, in memory."""
        site, settings = self.site, self.site.settings
        state, tensors = checkpoint.collect(self.strategy, site.device)
        meta: dict[str, Any] = {
            "run": site.run_digest,
            "site": site.name,
            "task_id": settings.task_id,
            "strategy": self.strategy.name,
            "consumed": self.stream.consumed,
            "images": len(site.images),
            "steps": self.steps,
            "ended": step >= self.steps,
            "settings": settings.shared(),
            "hand_over": self.strategy.hand_over(),
            **({"solver_steps": self.solver_steps} if self.solver_steps < self.steps else {}),
            **({"halvings": site.halvings} if site.halvings else {}),
            **({"privacy": self.strategy.privacy.facts()} if self.strategy.privacy is not None else {}),
            **self.origin,
            **state,
        }
        if step >= self.steps:  # nobody needs it now, and nobody may have it
            tensors.pop(checkpoint.SECRET, None)
        if distributed.rank() != 0:
            return Checkpoint(site.folder, "", {**meta, "step": step}, tensors)
        written = checkpoint.write(site.folder, step, meta, tensors)
        site.say(events.Saved(site.name, step, str(written.path), written.digest))
        self.last = time.monotonic()
        return written


class Progress:
    """Keeps the means of the losses, the images a second and the time left, and emits them."""

    def __init__(self, site: SiteTraining, strategy: Strategy, first: int, steps: int) -> None:
        self.site, self.strategy, self.steps = site, strategy, steps
        self.sums: dict[str, tuple[Tensor, int]] = {}
        self.begin = self.since = time.monotonic()
        self.first = self.said = first

    @property
    def seconds(self) -> float:
        """Seconds since this training began or was resumed."""
        return time.monotonic() - self.begin

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        """Take a step's losses into account; emit a `Step` event every `log_every_n_steps` steps and at the last one."""
        for name, value in losses.items():
            total, count = self.sums.get(name, (torch.zeros_like(value), 0))
            self.sums[name] = (total + value.detach(), count + 1)
        if step % self.site.settings.train.log_every_n_steps and step != self.steps:
            return
        now = time.monotonic()
        rate = (step - self.said) / max(now - self.since, 1e-9)
        overall = (step - self.first) / max(now - self.begin, 1e-9)
        means = {name: round(float(distributed.mean_(total / count)), 6) for name, (total, count) in self.sums.items()}
        batch = self.site.fitting.train.batch_size
        seconds_left = (self.steps - step) / overall
        rates = round(rate * batch, 2), round(seconds_left, 1)
        self.site.say(events.Step(self.site.name, step, self.steps, means, *rates, self.strategy.figures()))
        self.sums, self.since, self.said = {}, now, step
