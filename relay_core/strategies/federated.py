"""Federated averaging (McMahan 2017, arXiv 1602.05629) and FedProx (Li 2020, arXiv 1812.06127), simulated on one machine."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from relay_core.config import FedAvgKwargs, SiteSettings
from relay_core.errors import RunFileError
from relay_core.strategies.base import Position
from relay_core.strategies.baseline import BaselineStrategy


class FederatedStrategy(BaselineStrategy):
    """In rounds, each site trains the average of the round before; the results are averaged by their numbers of images.

    The solver is the newest average; `client` is the one that a site is training, `sum` what the sites of a round add up to.
    A site's optimizer keeps its state from round to round. The rounds share the budget evenly, in whole steps of the
    optimizers, so that it ends with one.
    """

    def __init__(self, settings: SiteSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        self.kwargs = cast(FedAvgKwargs, settings.strategy.kwargs)
        for name in ("client", "sum"):
            self.networks[name] = copy.deepcopy(self.solver)
        self._take_part([1])

    def _take_part(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        client = self.networks["client"]
        self.updaters = {f"client-{i}": self._make_solver_updater(client) for i in range(len(sizes))}

    def schedule(self, sizes: Sequence[int], steps: int) -> Sequence[int]:
        """Return the site of each step: all in turn, in as many rounds as the budget has for `local_steps` at each.

        Raises RunFileError where the budget is not even one step of the optimizer for each site.
        """
        if self._updates(steps) < len(sizes):
            raise RunFileError(
                f"strategy {self.name}: {steps} steps of {len(sizes)} sites together are not one round; set a larger budget"
            )
        self._take_part(sizes)
        return [self._turn(step, steps) % len(sizes) for step in range(steps)]

    def hand_over(self) -> list[str]:
        """The average alone."""
        return ["solver"]

    def step(self, images: Tensor, labels: Tensor, position: Position) -> dict[str, Tensor]:
        """Train the client of this step's site; where its turn ends, add it to the sum, and after the last, average."""
        if position.step >= position.solver_steps:
            return {}
        step, steps, client = position.step, position.solver_steps, self.networks["client"]
        turn = self._turn(step, steps)
        site = turn % len(self.sizes)
        if step == 0 or turn != self._turn(step - 1, steps):
            client.load_state_dict(self.solver.state_dict())
        images, labels = self.augment(self._signed(images), labels)
        logits, coarser = self._logits_to_learn(client, images)
        loss = self.supervised(logits, labels, coarser)
        losses = {"solver": loss}
        if self.kwargs.mu:
            pairs = zip(client.parameters(), self.solver.parameters(), strict=True)
            distance = torch.stack([(own - average.detach()).square().sum() for own, average in pairs]).sum()
            losses["proximal"] = self.kwargs.mu / 2 * distance
        total = torch.stack(list(losses.values())).sum()
        self.updaters[f"client-{site}"].update(total, position.progress)
        if step + 1 == steps or turn != self._turn(step + 1, steps):
            self._add(site)
        return {name: value.detach() for name, value in losses.items()}

    def _turn(self, step: int, steps: int) -> int:
        """Return the number of the turn that a step belongs to: one site's; a round ends where each site had one."""
        sites, updates = len(self.sizes), self._updates(steps)
        rounds = max(1, min(round(updates / (sites * self.kwargs.local_steps)), updates // sites))
        return step // self.settings.train.accumulate_grad_batches * rounds * sites // updates

    def _updates(self, steps: int) -> int:
        """Return how many steps of the optimizers so many batches are."""
        return -(-steps // self.settings.train.accumulate_grad_batches)

    @torch.no_grad()
    def _add(self, site: int) -> None:
        share = self.sizes[site] / sum(self.sizes)
        total, own = self.networks["sum"].state_dict(), self.networks["client"].state_dict()
        for name, value in total.items():
            if value.is_floating_point():
                value.copy_(own[name] * share if site == 0 else value + own[name] * share)
            else:
                value.copy_(own[name])
        if site == len(self.sizes) - 1:
            self.solver.load_state_dict(total)
