"""Batches of images, labels and the slots of their sites: joined with replay, thinned, taken one by one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from relay_core.replay import Replay

Batch = tuple[Tensor, Tensor, Tensor]
"""Images (N, C, R, R) in [-1, 1], class ids (N, R, R), or (N,) for classification, and the slots (N,) of their sites."""


def joined(batch: Batch, replay: Replay) -> Batch:
    """Append pseudo data to a batch."""
    more = (replay.images, replay.labels, replay.slots)
    images, labels, slots = (torch.cat(pair) for pair in zip(batch, more, strict=True))
    return images, labels, slots


def thinned(batch: Batch, wanted: int) -> Batch:
    """Return as many of a batch as are wanted, evenly chosen; all of it where it has no more, or 0 are wanted."""
    count, device = len(batch[0]), batch[0].device
    if not 0 < wanted < count:
        return batch
    chosen = torch.arange(wanted, device=device) * count // wanted
    images, labels, slots = (tensor[chosen] for tensor in batch)
    return images, labels, slots


def singly(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield batches of one sample each."""
    for i in range(len(tensors[0])):
        yield tuple(tensor[i : i + 1] for tensor in tensors)
