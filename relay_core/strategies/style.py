"""Replay of looks alone: the site's own images, recoloured as those of the sites before; no generator, no image travels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from relay_core.config import SiteSettings, StyleKwargs
from relay_core.errors import RunFileError
from relay_core.losses import distillation
from relay_core.replay import Styles, recoloured
from relay_core.strategies.base import Images, Position
from relay_core.strategies.remembering import RememberingStrategy, frozen_copy


class StyleStrategy(RememberingStrategy):
    """From the second site on, a share of each batch is recoloured as the images of earlier sites are.

    There the solver learns from the previous solver's answers alone: shapes stay, so the label map would fit, but it is
    drawn by this site's habits, and taught with the others' colours it overwrites theirs (measured: docs/method.md).
    """

    def __init__(self, settings: SiteSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        self.kwargs = cast(StyleKwargs, settings.strategy.kwargs)
        self.networks["styles"] = Styles(self.kwargs.sites, settings.data.img_channels).to(device)
        self.networks["old_solver"] = frozen_copy(self.solver)

    @property
    def styles(self) -> Styles:
        """The looks of the sites so far."""
        return cast(Styles, self.networks["styles"])

    def hand_over(self) -> list[str]:
        """The solver, which becomes the next site's teacher, and the looks."""
        return ["solver", "styles"]

    def begin_site(self, name: str, images: int, classes: Sequence[int] | None = None) -> None:
        """Freeze a copy of the received solver as the teacher. Raises RunFileError where another site has no room."""
        if self.sites >= self.kwargs.sites:
            raise RunFileError(f"strategy style has room for {self.kwargs.sites} sites: set strategy.kwargs.sites")
        self.networks["old_solver"].load_state_dict(self.solver.state_dict())

    def step(self, images: Tensor, labels: Tensor, position: Position) -> dict[str, Tensor]:
        """Train the solver for one step on the site's images, the first of them recoloured."""
        if position.step >= position.solver_steps:
            return {}
        images = self._signed(images)
        count = min(len(images) - 1, max(1, round(len(images) * self.kwargs.share))) if self.sites else 0
        if count:
            restyled = recoloured(images[:count], *self.styles.draw(count, range(self.sites), self.device))
            images = torch.cat([restyled, images[count:]])
        images, labels = self.augment(images, labels)
        logits, coarser = self._logits_to_learn(self.solver, images)
        losses = {"solver": self.supervised(logits[count:], labels[count:], [level[count:] for level in coarser])}
        if count:
            with torch.no_grad():
                target = self._logits(self.networks["old_solver"], images[:count])
            losses["distillation"] = self.kwargs.weight * distillation(logits[:count], target, self.kwargs.tau)
        self.updaters["solver"].update(torch.stack(list(losses.values())).sum(), position.progress)
        return {name: value.detach() for name, value in losses.items()}

    @torch.no_grad()
    def end_site(self, images: Images) -> None:
        """Keep the looks of this site."""
        self.styles.keep(self.sites, self._signed_batches(images))
        super().end_site(images)
