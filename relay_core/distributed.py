"""What several processes of one training share: their ranks, their means, and their random numbers.

Every process keeps the same state of torch's random generator. A draw for a batch is made for the *global* batch, and
each process keeps the samples `rank, rank + world, rank + 2 world, ...`. So a training draws the same numbers for the
same samples on one process and on many, a checkpoint holds one random state whatever the number of processes, and
the strided slices keep the groups of the minibatch standard deviation together.
In a single process (no process group) everything here is plain torch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Return this process's number, 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Return the number of processes, 1 when alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def take_share(values: Tensor) -> Tensor:
    """Return this process's samples of a global batch (first dimension)."""
    return values[rank() :: world()] if world() > 1 else values


def randn(n: int, *shape: int, device: torch.device | str | None = None) -> Tensor:
    """Return standard normal numbers of shape (n, *shape) for this process's n samples."""
    return take_share(torch.randn(n * world(), *shape, device=device))


def rand(n: int, *shape: int, device: torch.device | str | None = None) -> Tensor:
    """Return uniform numbers in [0, 1) of shape (n, *shape) for this process's n samples."""
    return take_share(torch.rand(n * world(), *shape, device=device))


def randint(low: int, high: int, n: int, *shape: int, device: torch.device | str | None = None) -> Tensor:
    """Return integers in [low, high) of shape (n, *shape) for this process's n samples."""
    return take_share(torch.randint(low, high, (n * world(), *shape), device=device))


def mean_(value: Tensor) -> Tensor:
    """Replace `value` by its mean over the processes, in place; return it."""
    if world() > 1:
        dist.all_reduce(value)
        value /= world()
    return value


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        dist.barrier()


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes: one flat all-reduce.

    Done by hand, not by a DistributedDataParallel wrapper, because a step of ours runs a network several times and
    differentiates gradients (path length, R1), which the wrapper's hooks do not follow.
    """
    if world() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    if grads:
        flat = mean_(torch.cat([g.flatten() for g in grads]))
        for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(part.view_as(g))
