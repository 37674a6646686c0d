"""The course of a training: what it has cost so far, in seconds and operations, and what its solver scores by then."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

from relay_core.files import write_atomically
from relay_core.metrics import Point, last_points


class Course:
    """Keeps the points of a run, of all its sites, in a file; a run that is resumed goes on with it.

    Operations are those of matrix products and convolutions, two a multiply-add, in every pass forward and backward, twice
    differentiated ones included. They are counted once for each kind of step of a site (`Strategy.work`). What the compiled
    ops (`relay_core.cuda`) do inside is not counted: they move memory.

    Args:
        path: the file, JSON.
        points: number of points at each site, evenly over its budget.
    """

    def __init__(self, path: Path, points: int = 4) -> None:
        self.path, self.points_a_site = path, points
        plain = json.loads(path.read_text()) if path.is_file() else []
        self.points = [Point(**point) for point in plain]
        self._site, self._steps = "", 0
        self._counts: dict[Hashable, int] = {}
        self._resumed_at = 0
        self._since = self._seconds = self._operations = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training at all sites."""
        return round(sum(point.seconds for point in last_points(self.points)), 3)

    @property
    def operations(self) -> float:
        """Floating-point operations of the training at all sites."""
        return sum(point.operations for point in last_points(self.points))

    @contextmanager
    def watch(self, site: str, step: int, steps: int, work: Hashable) -> Iterator[None]:
        """Count the operations of step number `step` (from 0) of `steps` at a site, which is of the kind `work`."""
        if site != self._site:
            self._begin(site, step)
        self._steps = steps
        if work in self._counts:
            yield
        else:
            with operations() as counted:
                yield
            self._counts[work] = counted.count
        self._operations += self._counts[work]

    def due(self, step: int) -> bool:
        """Return whether a point is wanted after `step` steps of the site that is watched."""
        marks = {round(self._steps * i / self.points_a_site) for i in range(1, self.points_a_site + 1)}
        return step in marks

    def add(self, step: int, score: Callable[[], Mapping[str, float | None]], device: torch.device) -> Point:
        """Add a point after `step` steps; `score` is called while the clock stands still. Return the point."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.monotonic()
        self._seconds += now - self._since
        base = self._newest()
        # what was trained between the last point and an interruption was measured by nobody: as much a step as what was
        share = (step - (base.step if base else 0)) / (step - self._resumed_at)
        seconds = (base.seconds if base else 0.0) + self._seconds * share
        count = (base.operations if base else 0.0) + self._operations * share
        point = Point(self._site, step, self._steps, round(seconds, 3), count, dict(score()))
        self.points.append(point)
        write_atomically(self.path, json.dumps([asdict(each) for each in self.points], indent=1).encode())
        self._restart(step)
        return point

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for what is no training."""
        self._seconds += time.monotonic() - self._since
        yield
        self._since = time.monotonic()

    def _begin(self, site: str, step: int) -> None:
        self._site, self._counts = site, {}
        self.points = [point for point in self.points if point.site != site or point.step <= step]
        self._restart(step)

    def _restart(self, step: int) -> None:
        self._resumed_at = step
        self._seconds, self._operations, self._since = 0.0, 0.0, time.monotonic()

    def _newest(self) -> Point | None:
        return next((point for point in reversed(self.points) if point.site == self._site), None)


class operations(TorchDispatchMode):  # a context manager, as torch.no_grad is
    """Counts, in `count`, the floating-point operations of matrix products and convolutions within a `with` block.

    By the formulas of torch's FlopCounterMode, whose hooks on modules fail where something is differentiated twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and count."""
        kwargs = kwargs or {}
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.count += formula(*args, **kwargs, out_val=result)
        return result


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> int:
    """Each of the gradients by input and by weight costs what the convolution does.

    (torch's own formula counts the gradient by the weight of a grouped convolution as if it had no groups.)
    """
    transposed, wanted = args[4], args[7]
    once: int = conv_flop_count(list(x.shape), list(weight.shape), list(gradient.shape), transposed=transposed)
    return once * (bool(wanted[0]) + bool(wanted[1]))


_FORMULAS = {**flop_registry, torch.ops.aten.convolution_backward: _convolution_backward}
