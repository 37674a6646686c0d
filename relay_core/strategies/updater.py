"""An optimizer step that many processes share and that bad numbers cannot ruin."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relay_core import distributed
from relay_core.config import FUSED, OptimizerSettings
from relay_core.errors import TrainingDiverged

if TYPE_CHECKING:
    from relay_core.strategies.private import Privacy

PATIENCE = 20
"""Steps in a row with non-finite gradients after which training stops."""
LARGEST = 1e5
"""Infinite gradients are replaced by this value, NaN by 0."""


class Updater:
    """An optimizer with what a step needs around it: mean over processes, repair of bad numbers, clipping, schedule.

    Args:
        what: name of the trained networks, for messages.
        parameters: to be trained.
        settings: the optimizer.
        accumulate: backward passes before a step.
        clip: largest norm of the gradient, or None.
        half: scale the loss, as float16 needs.
    """

    def __init__(
        self,
        what: str,
        parameters: Iterable[torch.nn.Parameter],
        settings: OptimizerSettings,
        *,
        accumulate: int = 1,
        clip: float | None = None,
        half: bool = False,
    ) -> None:
        self.what, self.settings, self.accumulate, self.clip = what, settings, accumulate, clip
        self.parameters = list(parameters)
        # one pass over all parameters: 5 times faster on a CPU
        kwargs = {**({"fused": True} if settings.name in FUSED else {}), **settings.kwargs}
        self.optimizer: torch.optim.Optimizer = getattr(torch.optim, settings.name)(self.parameters, **kwargs)
        self.base_lr = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(enabled=half)
        self.pending = 0
        self.bad_steps = 0
        self.before_step: Callable[[], None] = lambda: None
        """May change the gradients, once they are whole and finite, before they are clipped and used."""

    def update(self, loss: Tensor, progress: float) -> None:
        """Differentiate the loss; every `accumulate` calls step the optimizer.

        Raises:
            TrainingDiverged: the gradients were not finite for `PATIENCE` steps in a row.
        """
        if self.pending == 0:
            self.optimizer.zero_grad(set_to_none=True)
        loss = loss / self.accumulate if self.accumulate > 1 else loss
        self.scaler.scale(loss).backward()
        # at every call, not only before a step: so a checkpoint in between holds what is true of all processes
        distributed.average_gradients(self.parameters)
        self.pending += 1
        if self.pending == self.accumulate:
            self._step(progress)
            self.pending = 0

    def update_privately(
        self, privacy: Privacy, losses: Iterable[Tensor], public: Tensor | None, share: float, progress: float
    ) -> Tensor:
        """Step the optimizer by private gradients; return the mean loss of the units.

        Args:
            privacy: clips, and draws the noise.
            losses: the loss of each unit that was drawn, made one after the other.
            public: a loss on what may be known: generated images; or None.
            share: factor of the sum over the units.
            progress: share of the budget that is done.

        Raises:
            TrainingDiverged: as `update`.
        """
        mean = privacy.differentiate(losses, self.parameters, share)
        if public is not None:
            public.backward()
        self._step(progress)
        return mean

    def _step(self, progress: float) -> None:
        self.scaler.unscale_(self.optimizer)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if norm.isfinite():
            self.bad_steps = 0
        else:
            self._repair(grads)
        self.before_step()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        for group, lr in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = lr * self.settings.lr_factor(progress)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _repair(self, grads: list[Tensor]) -> None:
        self.bad_steps += 1
        if self.bad_steps >= PATIENCE:
            raise TrainingDiverged(
                f"the gradients of the {self.what} were not finite for {PATIENCE} steps in a row; lower its learning "
                "rate, or check the images for extreme values, and go on from the last checkpoint with --resume"
            )
        if not self.scaler.is_enabled():  # the scaler skips such a step and lowers its scale
            for grad in grads:
                torch.nan_to_num(grad, nan=0.0, posinf=LARGEST, neginf=-LARGEST, out=grad)
