"""Elastic weight consolidation (Kirkpatrick 2017, arXiv 1612.00796), online (Schwarz 2018, arXiv 1805.06370)."""

from __future__ import annotations

from typing import cast

import torch

from relay_core.config import EwcKwargs, SiteSettings
from relay_core.losses import cross_entropy
from relay_core.strategies.base import Images
from relay_core.strategies.remembering import ImportanceStrategy


class EWCStrategy(ImportanceStrategy):
    """A weight's importance is its Fisher information: how strongly the solver's answers depend on it.

    F is the mean over images of the squared gradient of the log-likelihood (mean over pixels), with labels drawn from the
    solver's own answers; at each site `F := decay * F + F_site`. The penalty is `strength / 2 * sum F (theta - anchor)^2`.
    """

    def __init__(self, settings: SiteSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        self.kwargs = cast(EwcKwargs, settings.strategy.kwargs)
        self.strength = self.kwargs.strength / 2

    def end_site(self, images: Images) -> None:
        """Add the Fisher information of this site's images to the importances; every process computes all of it."""
        count = min(len(images), self.kwargs.images)
        chosen = [(2 * i + 1) * len(images) // (2 * count) for i in range(count)]
        generator = torch.Generator().manual_seed(self.settings.random_seed)
        training = self.solver.training
        self.solver.eval()
        for parameter in self.networks["importance"].parameters():
            parameter.mul_(self.kwargs.decay)
        for i in chosen:
            logits = self._logits(self.solver, self._signed(images.batch([i])[0].to(self.device)), exact=True)
            chances = logits.detach().softmax(dim=1).movedim(1, -1).flatten(0, -2).cpu().float()
            drawn = torch.multinomial(chances, 1, generator=generator).view(logits.shape[0], *logits.shape[2:])
            self.solver.zero_grad(set_to_none=True)
            cross_entropy(logits, drawn.to(self.device)).backward()
            for weight, importance, _ in self._weights():
                if weight.grad is not None:
                    importance.add_(weight.grad.square() / count)
        self.solver.zero_grad(set_to_none=True)
        self.solver.train(training)
        super().end_site(images)
