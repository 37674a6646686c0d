"""Which images come next: shuffled passes over a site's images, a pure function of seed and position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relay_core import distributed
from relay_core.strategies import Images


class Joined:
    """Several sites' images as one set."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self.parts = parts
        self.owner = [(part, i) for part in parts for i in range(len(part))]

    def __len__(self) -> int:
        return len(self.owner)

    def batch(self, index: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Images and class ids of all parts, in the order asked for."""
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
        """The next `count` images over all processes; this process gets its share of them."""
        per_pass = self.images * self.replicas
        found = []
        for position in range(self.consumed, self.consumed + count):
            number, offset = divmod(position, per_pass)
            found.append(self._pass(number)[offset])
        self.consumed += count
        return found[distributed.rank() :: distributed.world()]

    def _pass(self, number: int) -> list[int]:
        if number not in self._order:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            order = torch.randperm(self.images * self.replicas, generator=generator) % self.images
            self._order = {number: order.tolist()}
        return self._order[number]
