"""The solver alone: local, sequential fine-tuning, or joint training. What changes between them is the data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relay_core.config import SiteSettings
from relay_core.data.augment import SolverAugment
from relay_core.losses import make_loss
from relay_core.models.factory import HALF, make_solver
from relay_core.strategies.base import Position, Strategy
from relay_core.strategies.updater import Updater


class BaselineStrategy(Strategy):
    """Plain supervised training with the relay's loss, optimizer, budget and augmentation."""

    name = "baseline"

    def __init__(self, settings: SiteSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        train = settings.train
        self.half = HALF.get(train.precision) if device.type == "cuda" or train.precision == "bf16" else None
        self.networks = {"solver": make_solver(settings.solver).to(device)}
        self.updaters = {
            "solver": Updater(
                "solver", self.solver.parameters(), settings.solver_optimizer,
                accumulate=train.accumulate_grad_batches, clip=train.gradient_clip, half=self.half is torch.float16,
            )
        }  # fmt: skip
        self.loss = make_loss(train.loss.name, train.loss.kwargs.model_dump())
        self.augment = SolverAugment(train.augment)

    @property
    def solver(self) -> nn.Module:
        """The segmenter."""
        return self.networks["solver"]

    def begin_site(self, name: str, images: int) -> None:
        """Nothing is kept of a site but the weights."""

    def real_count(self, position: Position) -> int:
        """The whole batch."""
        return self.settings.train.batch_size

    def step(self, images: Tensor, labels: Tensor, position: Position) -> dict[str, Tensor]:
        """One step of the solver."""
        if position.step >= position.solver_steps:
            return {}
        images, labels = self.augment(images, labels)
        with torch.autocast(self.device.type, self.half or torch.bfloat16, enabled=self.half is not None):
            logits = self.solver(images)
        loss = self.loss(logits.float(), labels)
        self.updaters["solver"].update(loss, position.progress)
        return {"solver": loss.detach()}
