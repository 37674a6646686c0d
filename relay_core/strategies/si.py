"""Synaptic intelligence (Zenke 2017, arXiv 1703.04200)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from relay_core.config import SiKwargs, SiteSettings
from relay_core.strategies.base import Images, Position
from relay_core.strategies.remembering import ImportanceStrategy, frozen_copy

LARGEST = 1e8
"""Bound of a weight's path integral at one site."""


class SIStrategy(ImportanceStrategy):
    """A weight's importance is how much it lowered the loss on its way through a site's training.

    At each step omega grows by `lr * gradient^2` (rule `reference`), or by `-gradient * step` published (`path_integral`).
    At the end of a site importance grows by `clamp(omega) / ((theta - anchor)^2 + xi)`. The gradient is that of the whole
    objective, as in the reference.
    """

    def __init__(self, settings: SiteSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        self.kwargs = cast(SiKwargs, settings.strategy.kwargs)
        self.strength = self.kwargs.c
        self.networks["path"] = frozen_copy(self.solver, 0.0)

    @torch.no_grad()
    def begin_site(self, name: str, images: int, classes: Sequence[int] | None = None) -> None:
        """Anchor the weights and begin a new path integral."""
        super().begin_site(name, images)
        for omega in self.networks["path"].parameters():
            omega.zero_()

    def step(self, images: Tensor, labels: Tensor, position: Position) -> dict[str, Tensor]:
        """Train the solver for one step, and add the step to the path integral."""
        by_steps = self.kwargs.rule == "path_integral"
        before = [p.detach().clone() for p in self.solver.parameters()] if by_steps else []
        losses = super().step(images, labels, position)
        updater = self.updaters["solver"]
        if losses and updater.pending == 0 and updater.bad_steps == 0:  # a step that was taken
            self._follow(before, updater.optimizer.param_groups[0]["lr"])
        return losses

    @torch.no_grad()
    def _follow(self, before: list[Tensor], lr: float) -> None:
        for i, (p, omega) in enumerate(zip(self.solver.parameters(), self.networks["path"].parameters(), strict=True)):
            if p.grad is not None:
                omega.add_(-p.grad * (p - before[i]) if before else lr * p.grad.square())

    @torch.no_grad()
    def end_site(self, images: Images) -> None:
        """Add the path integral of this site to the importances."""
        super().end_site(images)
        for (p, importance, anchor), omega in zip(self._weights(), self.networks["path"].parameters(), strict=True):
            importance.add_(omega.clamp(-LARGEST, LARGEST) / ((p - anchor).square() + self.kwargs.xi))
