"""A reference for a first site, which received none: networks trained for a short while on half of its patients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relay_core.config import DoubleGanKwargs, SiteSettings
from relay_core.data import SiteData
from relay_core.engine import Checkpoint, SiteTraining, train_site
from relay_core.events import Emit, Stop

SHARE = 1 / 3
"""Share of the site's budget that the reference trains for."""


class Part:
    """Some images of a site, as a training takes them."""

    def __init__(self, data: SiteData, positions: Sequence[int]) -> None:
        self.data, self.positions = data, torch.tensor(positions)

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, index: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels at places of the part."""
        return self.data.batch(self.positions[torch.as_tensor(index, dtype=torch.long)])


def shadow_steps(settings: SiteSettings, images: int) -> int:
    """Return how many steps a reference trains for."""
    return max(1, round(SHARE * settings.train.steps(images * settings.data.num_replica)))


def train_shadow(
    settings: SiteSettings, part: Part, images: int, folder: Path, device: torch.device, emit: Emit, stop: Stop
) -> Checkpoint:
    """Train the reference in a folder, going on with what an earlier call left there; `images` is the number of all.

    It stays at the site, and learns without differential privacy: what it knows of images is what is asked of it.

    Raises:
        Stopped: it was asked to stop; a checkpoint was written.
    """
    train = settings.train
    budget: dict[str, Any] = {"num_mimgs": shadow_steps(settings, images) * train.batch_size / 1e6, "num_epochs": None}
    changed: dict[str, Any] = {
        "train": train.model_copy(update={**budget, "solver_num_mimgs": None, "solver_num_epochs": None, "privacy": None})
    }
    if isinstance(settings.model.kwargs, DoubleGanKwargs):
        kwargs = settings.model.kwargs.model_copy(update={"gan_after_solver": False, "gan_at_last_site": True})
        changed["model"] = settings.model.model_copy(update={"kwargs": kwargs})
    own = settings.model_copy(update=changed)
    return train_site(SiteTraining(own, part, folder, device, "", emit, stop), None, resume=True)
