"""The order in which a site's images are shown: shuffled passes over them, a pure function of seed and position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relay_core import distributed
from relay_core.strategies import Images


class Joined:
    """The images of several sites as one set, one site after the other."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self.parts = parts
        self.owner = [(part, i) for part in parts for i in range(len(part))]

    def __len__(self) -> int:
        return len(self.owner)

    def batch(self, index: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Return the images and class ids at the given positions of the joined set, in the order asked for."""
        pairs = [part.batch([i]) for part, i in (self.owner[int(k)] for k in index)]
        return torch.cat([image for image, _ in pairs]), torch.cat([label for _, label in pairs])


class Stream:
    """An endless series of shuffled passes over `images` images, each shown `replicas` times a pass.

    `consumed` is all its state: the same seed and position give the same images, whatever happened in between.
    """

    def __init__(self, images: int, seed: int, replicas: int = 1, consumed: int = 0) -> None:
        self.images, self.seed, self.replicas, self.consumed = images, seed, replicas, consumed
        self._order: dict[int, list[int]] = {}

    def take(self, count: int) -> list[int]:
        """Return this process's share of the next `count` images, which all processes take together, as image numbers."""
        per_pass = self.images * self.replicas
        image_numbers = []
        for position in range(self.consumed, self.consumed + count):
            pass_number, offset = divmod(position, per_pass)
            image_numbers.append(self._pass(pass_number)[offset])
        self.consumed += count
        return image_numbers[distributed.rank() :: distributed.world()]

    def _pass(self, pass_number: int) -> list[int]:
        if pass_number not in self._order:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + pass_number)
            order = torch.randperm(self.images * self.replicas, generator=generator) % self.images
            self._order = {pass_number: order.tolist()}
        return self._order[pass_number]
