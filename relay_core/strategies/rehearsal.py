"""Plain rehearsal (Robins 1995): a few REAL images of every site are kept and shown again.

Real images leave their site with the checkpoint: this breaks the air-gap promise of a relay. It is here as the baseline that
continual learning is compared with, for studies on a single machine, and it cannot be written into a bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from relay_core import distributed
from relay_core.config import RehearsalKwargs, SiteSettings
from relay_core.errors import RunFileError
from relay_core.strategies.base import Images, Position
from relay_core.strategies.remembering import RememberingStrategy

_EMPTY = -1


def _evenly(items: Sequence[int], count: int) -> list[int]:
    """Choose at most `count` of the items, evenly spread."""
    count = min(count, len(items))
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(count)]


class Memory(nn.Module):
    """Kept images (M, C, R, R) in [-1, 1], their class ids (M, ...), and their site's number (M,), -1 where empty."""

    def __init__(self, capacity: int, image: tuple[int, ...], label: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(capacity, *image))
        self.register_buffer("labels", torch.zeros(capacity, *label, dtype=torch.long))
        self.register_buffer("owners", torch.full((capacity,), _EMPTY))
        self.images: Tensor
        self.labels: Tensor
        self.owners: Tensor

    def make_room(self, sites: int) -> int:
        """Shrink every known site's images to an equal share for `sites` + 1 sites; return the places of the new site.

        Raises:
            RunFileError: there are more sites than places.
        """
        share = len(self.owners) // (sites + 1)
        if share == 0:
            raise RunFileError(
                f"strategy rehearsal keeps {len(self.owners)} images, of more sites: set strategy.kwargs.images"
            )
        kept = [i for site in range(sites) for i in _evenly((self.owners == site).nonzero()[:, 0].tolist(), share)]
        for tensor in (self.images, self.labels, self.owners):
            tensor[: len(kept)] = tensor[kept]
        self.owners[len(kept) :] = _EMPTY
        return share

    @property
    def filled(self) -> int:
        """How many images are kept."""
        return int((self.owners != _EMPTY).sum())


class RehearsalStrategy(RememberingStrategy):
    """From the second site on a share of each batch is drawn from the kept images of earlier sites."""

    holds_real_images = True

    def __init__(self, settings: SiteSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        self.kwargs = cast(RehearsalKwargs, settings.strategy.kwargs)
        side = settings.resolution
        label = (side, side) if settings.data.task == "segmentation" else ()
        self.networks["memory"] = Memory(self.kwargs.images, (settings.data.img_channels, side, side), label).to(device)

    @property
    def memory(self) -> Memory:
        """The memory of kept images."""
        return cast(Memory, self.networks["memory"])

    def _rehearsed(self) -> int:
        """How many images of a batch come from memory, over all processes."""
        batch, world = self.settings.train.batch_size, distributed.world()
        wanted = round(batch * self.kwargs.share / world) * world
        return min(batch - world, max(world, wanted)) if self.sites and self.memory.filled else 0

    def real_count(self, position: Position) -> int:
        """The part of a batch that does not come from memory."""
        return self.settings.train.batch_size - self._rehearsed()

    def step(self, images: Tensor, labels: Tensor, position: Position) -> dict[str, Tensor]:
        """Train the solver for one step on the site's images and on kept ones."""
        count = self._rehearsed() // distributed.world()
        if count:
            chosen = distributed.randint(0, self.memory.filled, count, device=self.device)
            kept = self._ranged(self.memory.images[chosen])
            images, labels = torch.cat([images, kept]), torch.cat([labels, self.memory.labels[chosen]])
        return super().step(images, labels, position)

    @torch.no_grad()
    def end_site(self, images: Images) -> None:
        """Keep an equal share of this site's images, evenly chosen."""
        room = self.memory.make_room(self.sites)
        start = self.memory.filled
        for place, i in enumerate(_evenly(range(len(images)), room), start=start):
            image, label = images.batch([i])
            self.memory.images[place], self.memory.labels[place] = self._signed(image[0]), label[0]
            self.memory.owners[place] = self.sites
        super().end_site(images)
