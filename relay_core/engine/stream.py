"""The order in which a site's images are shown: shuffled passes over them, a pure function of seed and position.

Images that do not fit into memory are decoded ahead of need, by processes of their own.
"""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from relay_core import distributed
from relay_core.data import SiteData
from relay_core.errors import DataError
from relay_core.strategies import Privacy


class Joined:
    """The images of several sites as one set, one site after the other."""

    def __init__(self, parts: Sequence[SiteData]) -> None:
        self.parts = parts
        self.owner = [(part, i) for part in parts for i in range(len(part))]

    def __len__(self) -> int:
        return len(self.owner)

    @property
    def in_memory(self) -> bool:
        """Whether the decoded images of all sites are kept in memory."""
        return all(getattr(part, "in_memory", True) for part in self.parts)

    @property
    def names(self) -> list[str]:
        """The sites' names of their images, one site after the other."""
        return [name for part in self.parts for name in getattr(part, "names", [])]

    @property
    def fingerprints(self) -> list[str]:
        """The sites' hashes of their images, one site after the other."""
        return [fingerprint for part in self.parts for fingerprint in getattr(part, "fingerprints", [])]

    def batch(self, index: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Return the images and class ids at the given positions of the joined set, in the order asked for."""
        owners = [self.owner[int(k)] for k in index]
        places, pairs = [], []
        for part in self.parts:  # a site's images together, by several threads where they are decoded
            own = [place for place, (owner, _) in enumerate(owners) if owner is part]
            if own:
                places += own
                pairs.append(part.batch([owners[place][1] for place in own]))
        order = torch.tensor(places).argsort()
        return torch.cat([image for image, _ in pairs])[order], torch.cat([label for _, label in pairs])[order]

    def decoded(self, position: int) -> tuple[Tensor, Tensor]:
        """Return one image and its label as its site keeps them."""
        part, i = self.owner[position]
        return part.decoded(i)

    def batch_of_one(self, position: int, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `batch` returns for the image at `position`, from what `decoded` returned."""
        part, i = self.owner[position]
        return part.batch_of_one(i, image, label)


class Stream:
    """An endless series of shuffled passes over `images` images, each shown `replicas` times a pass.

    `consumed` is all its state: the same seed and position give the same images, whatever happened in between.
    """

    def __init__(self, images: int, seed: int, replicas: int = 1, consumed: int = 0) -> None:
        self.images, self.seed, self.replicas, self.consumed = images, seed, replicas, consumed
        self._order: dict[int, list[int]] = {}

    def take(self, count: int) -> list[int]:
        """Return this process's share of the next `count` images, which all processes take together, as image numbers."""
        image_numbers = [self._at(position) for position in range(self.consumed, self.consumed + count)]
        self.consumed += count
        return image_numbers[distributed.rank() :: distributed.world()]

    def ahead(self) -> Iterator[int]:
        """Yield, without end, the image numbers that this process's next calls of `take` return."""
        ahead = copy.deepcopy(self)
        for position in itertools.count(self.consumed + distributed.rank(), distributed.world()):
            yield ahead._at(position)

    def _at(self, position: int) -> int:
        pass_number, offset = divmod(position, self.images * self.replicas)
        return self._pass(pass_number)[offset]

    def _pass(self, pass_number: int) -> list[int]:
        if pass_number not in self._order:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + pass_number)
            order = torch.randperm(self.images * self.replicas, generator=generator) % self.images
            self._order = {pass_number: order.tolist()}
        return self._order[pass_number]


class TurnsStream(Stream):
    """The images of joined sites in turns: those of a step are of one site, from a series of that site's own.

    Args:
        sizes: number of images of each site.
        owners: the site of each step.
        batch: images a step, over all processes.
        seed: seed of all series.
        replicas: how often a pass shows each image.
    """

    def __init__(self, sizes: Sequence[int], owners: Sequence[int], batch: int, seed: int, replicas: int = 1) -> None:
        super().__init__(sum(sizes), seed, replicas)
        self.owners, self.batch = owners, batch
        self.first = [0, *itertools.accumulate(sizes)]
        self.series = [Stream(size, seed * 1009 + site, replicas) for site, size in enumerate(sizes)]
        counts = [0] * len(sizes)
        self.before = []
        """How many steps each step's site had before it."""
        for owner in owners:
            self.before.append(counts[owner])
            counts[owner] += 1

    def _at(self, position: int) -> int:
        step, place = divmod(position, self.batch)
        step = min(step, len(self.owners) - 1)  # what is decoded ahead beyond the end is never asked for
        owner = self.owners[step]
        return self.first[owner] + self.series[owner]._at(self.before[step] * self.batch + place)


class PrivateStream(Stream):
    """The images of units (patients) that are drawn by luck at every step, as the accounting of privacy presumes."""

    def __init__(self, images: int, privacy: Privacy) -> None:
        super().__init__(images, 0)
        self.privacy = privacy

    def take(self, count: int) -> list[int]:
        """Return the image numbers of the next step: `count` in the mean, none perhaps."""
        drawn = self.privacy.draw(self.consumed, count)
        self.consumed += count
        return drawn


class Feed:
    """Gives a training its batches, in the order of a stream.

    Images in memory are taken when they are wanted. Others are decoded ahead by `workers` processes, or, without any, when
    they are wanted. That changes no value and no order; so a training that is resumed goes on bit-equal.
    """

    def __init__(self, images: Any, stream: Stream, device: torch.device, workers: int, batch: int = 1) -> None:
        self.images, self.stream, self.device = images, stream, device
        self._decoded: Iterator[Any] | None = None
        self._workers: list[Any] = []
        if getattr(images, "in_memory", True) or not workers:
            return
        loader = DataLoader(
            _Decoded(images), batch_size=None, sampler=stream.ahead(), num_workers=workers, collate_fn=_as_is,
            prefetch_factor=max(2, -(-2 * batch // (workers * distributed.world()))), worker_init_fn=_ignore_signals,
            pin_memory=device.type == "cuda",  # a thread takes what was decoded while this one waits for the GPU
            multiprocessing_context=_context(), generator=torch.Generator(),  # the training's own random state stays
        )  # fmt: skip
        others = set(multiprocessing.active_children())
        self._decoded = iter(loader)
        self._workers = [child for child in multiprocessing.active_children() if child not in others]

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """Return this process's share of the next `count` images, a multiple of the number of processes, on the device.

        Raises:
            DataError: a file has changed since it was checked.
        """
        if self._decoded is None:
            images, labels = self.images.batch(self.stream.take(count))
        else:
            images, labels = self._next(self.stream.take(count))
        if self.device.type == "cuda":
            images, labels = images.pin_memory(), labels.pin_memory()
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def _next(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        assert self._decoded is not None
        pairs = []
        for number in numbers:
            pair = next(self._decoded)
            if isinstance(pair, DataError):
                raise pair
            pairs.append(self.images.batch_of_one(number, *map(torch.from_numpy, pair)))
        images, labels = zip(*pairs, strict=True)
        return torch.cat(images), torch.cat(labels)

    def close(self) -> None:
        """End the processes that decode, also those that hang."""
        self._decoded = None
        for worker in self._workers:
            worker.kill()  # they heed no other signal
            worker.join()


def decoders(wanted: int) -> int:
    """Return how many processes decode ahead: `wanted` (0: 8), at most one for each core of a training's share beyond two.

    On two cores they only take from each other: the threads of the training's own process decode as fast, and copy nothing.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(wanted or 8, max(0, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 2))


class _Decoded(Dataset[Any]):
    """Images as torch's loader asks for them: one at a time, as arrays, which need no shared memory on their way."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __getitem__(self, number: int) -> Any:
        try:
            image, label = self.images.decoded(number)
        except DataError as error:  # raised where it is awaited, with its own words
            return error
        return image.numpy(), label.numpy()


def _as_is(item: Any) -> Any:
    return item


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a training to stop; a terminal or a worker sends it to all processes of the training's group."""


def _ignore_signals(worker: int = 0) -> None:
    """Leave it to the training to stop: it still takes the batch that it waits for, and then ends its workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _context() -> Any:
    """Return a way to start processes that copies no threads and no CUDA state, with this package loaded once for all."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    if threading.current_thread() is threading.main_thread():  # signals are set there alone
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            _ignore_signals()  # the server of forks, too, outlives what asks the training to stop
            forkserver.ensure_running()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return context
