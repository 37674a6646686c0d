"""Seconds of a training iteration, split by phase.

    python benchmarks/train.py fundus-cpu fundus
    python benchmarks/train.py fundus-cpu --compare      # the compiled ops against torch's own, in turn

Images are random: only time is measured. A phase is timed on its own, after a warm-up; `iteration` is a whole step of a
second site with replay, without the lazy regularisations, and `with path length + R1` is one that has both.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import cast

import torch

from relay_core.config import load_run
from relay_core.cuda import loader
from relay_core.data import SolverAugment
from relay_core.engine import choose_device
from relay_core.strategies import FakeSlots, Position, RelayStrategy, make_strategy


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--compare", action="store_true", help="whole iterations, with and without the compiled ops")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    if args.compare:
        for recipe in args.recipes:
            compare(recipe, device, args.repeat)
        return
    rows = {recipe: measure(recipe, device, args.repeat) for recipe in args.recipes}
    phases = list(next(iter(rows.values())))
    print(f"| {device}, median seconds | " + " | ".join(rows) + " |")
    print("|---" * (1 + len(rows)) + "|")
    for phase in phases:
        print(f"| {phase} | " + " | ".join(f"{row[phase]:.3f}" for row in rows.values()) + " |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak memory {peak:.1f} GiB")


def compare(recipe: str, device: torch.device, repeat: int) -> None:
    """Whole iterations of a second site with RELAY_OPS=auto and =reference, one after the other."""
    settings = load_run(recipe).site(1)
    torch.manual_seed(0)
    strategy = cast(RelayStrategy, make_strategy(settings, device))
    batch, side = settings.train.batch_size, settings.resolution
    images = torch.rand(batch, settings.data.img_channels, side, side, device=device) * 2 - 1
    labels = torch.randint(0, settings.data.num_classes, (batch, side, side), device=device)
    strategy.begin_site("first", 100)
    strategy.begin_site("second", 100)
    for name, position in (("iteration", Position(1, 2, 2)), ("with path length + R1", Position(2000, 2001, 2001))):
        real = strategy.real_count(position)
        times: dict[str, list[float]] = {"auto": [], "reference": []}
        for turn in range(repeat + 2):
            for form, seconds in times.items():
                os.environ["RELAY_OPS"] = form
                loader.forget()
                loader.backend(device.type)  # tries the library out, before the clock runs
                taken = _seconds(lambda: strategy.step(images[:real], labels[:real], position), device)  # noqa: B023
                if turn >= 2:
                    seconds.append(taken)
        ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
        a, b = (statistics.median(t) for t in times.values())
        print(f"{recipe}, {name}: compiled {a:.3f} s, torch {b:.3f} s, torch / compiled {ratio:.2f}", flush=True)


def measure(recipe: str, device: torch.device, repeat: int) -> dict[str, float]:
    """Median seconds of each phase."""
    settings = load_run(recipe).site(1)
    torch.manual_seed(0)
    strategy = cast(RelayStrategy, make_strategy(settings, device))
    batch, side = settings.train.batch_size, settings.resolution
    images = torch.rand(batch, settings.data.img_channels, side, side, device=device) * 2 - 1
    labels = torch.randint(0, settings.data.num_classes, (batch, side, side), device=device)
    strategy.begin_site("first", 100)
    slots = torch.zeros(batch, dtype=torch.long, device=device)
    step = Position(1, 2, 2)

    def whole(position: Position) -> None:
        real = strategy.real_count(position)
        strategy.step(images[:real], labels[:real], position)

    def gan(number: int) -> None:
        strategy.gan.step((images, labels, slots), FakeSlots(slots), number, 0.5, batch)

    def clock(function: Callable[[], object]) -> float:
        return statistics.median([_seconds(function, device) for _ in range(repeat + 2)][2:])

    result = {"iteration, first site": clock(lambda: whole(step))}
    strategy.begin_site("second", 100)
    strategy.real_count(step)
    result["iteration, second site"] = clock(lambda: whole(step))
    result["with path length + R1"] = clock(lambda: whole(Position(2000, 2001, 2001)))
    condition = strategy.codec.add_noise(strategy.codec.encode(labels))
    codes = {pair.kind: FakeSlots(slots).codes(pair, strategy.codec, None) for pair in strategy.gan.pairs}
    result["G step"] = clock(lambda: strategy.gan._generator_step(condition, codes, 1, 0.5))
    both = clock(lambda: gan(1))
    result["D step"] = both - result["G step"]
    regularised = clock(lambda: gan(0))
    result["path length + R1"] = regularised - both
    result["solver step"] = clock(lambda: strategy._solver_step((images, labels, slots), batch // 2, batch // 2, 0.5))
    result["replay"] = clock(lambda: strategy._replayer("old").draw(batch // 2))
    augment = SolverAugment(settings.train.augment)
    result["solver's augmentation"] = clock(lambda: augment(images, labels))
    both_channels, pipe = torch.cat([images, condition], dim=1), strategy.gan.pairs[-1].pipe
    result["adaptive augmentation, p 0"] = clock(lambda: pipe(both_channels, 0.0))
    result["adaptive augmentation, p 0.2"] = clock(lambda: pipe(both_channels, 0.2))
    return result


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
