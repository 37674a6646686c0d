"""What strategies have in common that keep something of earlier sites beside the solver's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relay_core.strategies.base import Images
from relay_core.strategies.baseline import BaselineStrategy


class RememberingStrategy(BaselineStrategy):
    """A baseline that knows how many sites it has been at: from the second on it also remembers."""

    ends = True
    sites = 0
    """Sites whose training is over."""

    def end_site(self, images: Images) -> None:
        """Count the site whose training is over."""
        self.sites += 1

    def state(self) -> dict[str, Any]:
        """The number of sites that were trained at."""
        return {"sites": self.sites}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore `state`."""
        self.sites = int(state["sites"])

    def load_handed_over(self, state: dict[str, Any]) -> None:
        """Go on counting from the sites before; a first site hands over nothing."""
        if state:
            self.load_state(state)


def frozen_copy(solver: nn.Module, value: float | None = None) -> nn.Module:
    """Copy a solver, frozen and in eval mode; where `value` is given, every parameter of the copy is that number."""
    frozen = copy.deepcopy(solver).requires_grad_(False).eval()
    if value is not None:
        for parameter in frozen.parameters():
            parameter.fill_(value)
    return frozen


class ImportanceStrategy(RememberingStrategy):
    """Holds each weight near where the last site left it, the more so the more it mattered to the sites before.

    The penalty is `strength * sum importance (theta - anchor)^2` over all weights. Importances travel as a network of the
    solver's shape, whose parameters they are.
    """

    strength: float

    def __init__(self, settings: Any, device: torch.device) -> None:
        super().__init__(settings, device)
        self.networks["importance"] = frozen_copy(self.solver, 0.0)
        self.networks["anchor"] = frozen_copy(self.solver)

    def hand_over(self) -> list[str]:
        """The solver and the importances of its weights; the solver itself is the next site's anchor."""
        return ["solver", "importance"]

    def begin_site(self, name: str, images: int, classes: Sequence[int] | None = None) -> None:
        """Anchor the weights at their present values."""
        self.networks["anchor"].load_state_dict(self.solver.state_dict())

    def _weights(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Iterate over the solver's parameters, each with its importance and its anchor."""
        parts = (self.networks[name].parameters() for name in ("solver", "importance", "anchor"))
        return zip(*parts, strict=True)

    def _penalties(self, images: Tensor, logits: Tensor) -> dict[str, Tensor]:
        if self.sites == 0 or self.strength == 0:
            return {}
        total = sum((importance * (p - anchor).square()).sum() for p, importance, anchor in self._weights())
        return {"penalty": self.strength * torch.as_tensor(total)}
