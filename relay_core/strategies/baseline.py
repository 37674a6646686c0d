"""The solver alone: local, sequential fine-tuning, or joint training. What changes between them is the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relay_core.config import SiteSettings
from relay_core.data import SolverAugment
from relay_core.losses import make_loss
from relay_core.strategies.base import Position, Strategy
from relay_core.strategies.batches import singly
from relay_core.strategies.private import Privacy


class BaselineStrategy(Strategy):
    """Plain supervised training with the relay's loss, optimizer, budget and augmentation."""

    def __init__(self, settings: SiteSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        train = settings.train
        self.networks = {"solver": self._make_solver().to(device)}
        self.updaters = {"solver": self._make_solver_updater()}
        self.loss = make_loss(train.loss.name, train.loss.kwargs.model_dump())
        self.augment = SolverAugment(train.augment)

    def begin_site(self, name: str, images: int, classes: Sequence[int] | None = None) -> None:
        """Do nothing: the weights are all that is kept of a site."""

    def real_count(self, position: Position) -> int:
        """The whole batch is of the site's own images."""
        return self.settings.train.batch_size

    def step(self, images: Tensor, labels: Tensor, position: Position) -> dict[str, Tensor]:
        """Train the solver for one step."""
        if position.step >= position.solver_steps:
            return {}
        images, labels = self.augment(self._signed(images), labels)
        if self.privacy is not None:
            return self._learn_privately(self.privacy, images, labels, position)
        logits, coarser = self._logits_to_learn(self.solver, images)
        loss = self.supervised(logits, labels, coarser)
        penalties = self._penalties(images, logits)
        self.updaters["solver"].update(sum(penalties.values(), start=loss), position.progress)
        return {"solver": loss.detach()} | {name: value.detach() for name, value in penalties.items()}

    def _learn_privately(self, privacy: Privacy, images: Tensor, labels: Tensor, position: Position) -> dict[str, Tensor]:
        def loss(image: Tensor, label: Tensor) -> Tensor:
            logits, coarser = self._logits_to_learn(self.solver, image)
            return sum(self._penalties(image, logits).values(), start=self.supervised(logits, label, coarser))

        losses = (loss(*one) for one in singly(images, labels))
        share = 1 / privacy.expected
        return {"solver": self.updaters["solver"].update_privately(privacy, losses, None, share, position.progress)}

    def _penalties(self, images: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """Penalties that a derived strategy adds to the loss, by name; images are augmented, in [-1, 1]."""
        return {}
