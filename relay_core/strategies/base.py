"""What a strategy is: networks, their optimizers, and one training step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from relay_core.config import SiteSettings
from relay_core.strategies.updater import Updater


@dataclass(frozen=True)
class Position:
    """Where a site's training stands: `step` of `steps` (from 0), of which the solver learns in `solver_steps`."""

    step: int
    steps: int
    solver_steps: int

    @property
    def progress(self) -> float:
        """Share of the budget that is done, 0..1."""
        return self.step / self.steps


class Strategy(ABC):
    """How a model learns at one site.

    The engine calls `begin_site` once, then, for each step, `real_count` and `step`. All tensors that must survive a
    restart are in `networks` and in the optimizers of `updaters`; everything else is in `state`.
    """

    name: ClassVar[str]

    def __init__(self, settings: SiteSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.networks: dict[str, nn.Module] = {}
        self.updaters: dict[str, Updater] = {}

    @property
    @abstractmethod
    def solver(self) -> nn.Module:
        """The network that the clinic uses."""

    @abstractmethod
    def begin_site(self, name: str, images: int) -> None:
        """Prepare for a site with `images` training images, from the networks as they are."""

    @abstractmethod
    def real_count(self, position: Position) -> int:
        """How many of the site's own images the next step needs, over all processes; settles the step's stage."""

    @abstractmethod
    def step(self, images: Tensor, labels: Tensor, position: Position) -> dict[str, Tensor]:
        """Learn from one batch of this process's images (N, C, R, R) and class ids (N, R, R); return the losses."""

    def state(self) -> dict[str, Any]:
        """JSON-able state, tensors aside."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore `state`; called before the tensors are loaded, so that the networks can be laid out as they were."""

    def load_handed_over(self, state: dict[str, Any]) -> None:
        """Take over what the last site's `state` says about the sites before, its networks aside."""

    def hand_over(self) -> list[str]:
        """Names of the networks that the next site needs."""
        return list(self.networks)

    def missing_from(self, networks: list[str]) -> list[str]:
        """Averages that a checkpoint with these `networks` lacks: they start from what they are averages of."""
        return [name for name in self.hand_over() if name.endswith("_ema") and name not in networks]

    def samples(self, per_site: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Generated images and class ids by site, where the strategy generates any."""
        return {}
