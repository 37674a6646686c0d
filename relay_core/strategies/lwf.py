"""Learning without forgetting (Li 2016, arXiv 1606.09282)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from relay_core.config import LwfKwargs, SiteSettings
from relay_core.losses import distillation
from relay_core.strategies.remembering import RememberingStrategy, frozen_copy


class LwFStrategy(RememberingStrategy):
    """From the second site on the solver also keeps to the previous solver's answers on the site's own images."""

    def __init__(self, settings: SiteSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        self.kwargs = cast(LwfKwargs, settings.strategy.kwargs)
        self.networks["old_solver"] = frozen_copy(self.solver)

    def hand_over(self) -> list[str]:
        """The solver alone: it becomes the next site's teacher."""
        return ["solver"]

    def begin_site(self, name: str, images: int, classes: Sequence[int] | None = None) -> None:
        """Freeze a copy of the received solver as the teacher."""
        self.networks["old_solver"].load_state_dict(self.solver.state_dict())

    def _penalties(self, images: Tensor, logits: Tensor) -> dict[str, Tensor]:
        if self.sites == 0 or self.kwargs.weight == 0:
            return {}
        with torch.no_grad():
            target = self._logits(self.networks["old_solver"], images)
        return {"distillation": self.kwargs.weight * distillation(logits, target, self.kwargs.tau)}
