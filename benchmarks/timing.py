"""Time two forms of the same in turn, so that what else the machine does meets both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import cache

import torch

Run = Callable[[], object]
WARM_UP = 2
"""Runs of each form before the clock counts."""


def seconds(run: Run, device: torch.device) -> float:
    """Seconds of one run, on a GPU to the end of its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


HEAD_START = 2_000_000
"""Clock cycles, about a millisecond, that a GPU waits before it is timed: by then the run is in its queue."""


def device_seconds(run: Run, device: torch.device) -> float:
    """Seconds of one run, on a GPU by its own clock: without what the launches cost, and with nothing in its cache."""
    if device.type != "cuda":
        return seconds(run, device)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _flush(device).zero_()
    torch.cuda._sleep(HEAD_START)
    first.record()
    run()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1e3


@cache
def _flush(device: torch.device) -> torch.Tensor:
    """Memory larger than any GPU's cache; writing to it empties that."""
    return torch.empty(256 << 20, dtype=torch.uint8, device=device)


def alternate(
    runs: Mapping[str, Run],
    repeat: int,
    clock: Callable[[Run], float],
    before: Callable[[str], object] = lambda name: None,
    warm_up: int = WARM_UP,
) -> dict[str, list[float]]:
    """Seconds of each form, run in turn, `repeat` times after the warm-up; `before` prepares for a form by its name."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeat + warm_up):
        for name, run in runs.items():
            before(name)
            taken = clock(run)
            if turn >= warm_up:
                times[name].append(taken)
    return times


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median of the ratios of neighbouring runs."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))
