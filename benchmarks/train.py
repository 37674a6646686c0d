"""Seconds of a training iteration, split by phase; and with the compiled ops and without them, in turn.

    python -m benchmarks.train fundus-cpu
    python -m benchmarks.train fundus-cpu --tables compare --threads 1

Images are random: only time is measured. `iteration` is a whole step with the game, without its lazy regularisations; `with
path length + R1` has those that the recipe has; `without the game` is one of the solver alone. A phase is timed inside such
an iteration of a second site, with replay; where it is called more than once, its times are added up. A second table has the
operations of an iteration, and the share that it reaches of the speed of a large matrix product and of a large convolution.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch.nn.functional import conv2d

from benchmarks.record import TOY, Record, script
from benchmarks.timing import WARM_UP, alternate, ratio, seconds
from relay_core.config import SiteSettings, load_run
from relay_core.cuda import loader
from relay_core.engine import choose_device, operations
from relay_core.strategies import Position, RelayStrategy, make_strategy

PLAIN, REGULARISED, ALONE = "with the game", "with path length + R1", "without the game"
"""Kinds of steps: of the game without its lazy regularisations, with them, and of the solver alone."""
STEPS = 4000
"""Steps of the budget that a step of a kind is looked for in, from its middle on."""


class Trained:
    """A relay's strategy, begun at a first site, and a batch of random images for it."""

    def __init__(self, settings: SiteSettings, device: torch.device) -> None:
        torch.manual_seed(0)
        self.strategy = cast(RelayStrategy, make_strategy(settings, device))
        batch, side = settings.train.batch_size, settings.resolution
        self.images = torch.rand(batch, settings.data.img_channels, side, side, device=device) * 2 - 1
        self.labels = torch.randint(0, settings.data.num_classes, (batch, side, side), device=device)
        self.strategy.begin_site("first", 100)

    def find(self, kind: str) -> Position | None:
        """Return a position whose step is of a kind; None where the game has a part in every step."""
        for position in (Position(step, STEPS, STEPS) for step in range(STEPS // 2, STEPS)):
            _, played, *lazy, _ = cast(tuple[Any, ...], self.strategy.work(position))
            if {PLAIN: played and not any(lazy), REGULARISED: played and all(lazy), ALONE: not played}[kind]:
                return position
        return None

    def step(self, kind: str) -> Callable[[], None]:
        """Return one iteration of a kind that `find` finds; it is looked for now, before any clock runs."""
        position = self.find(kind)
        assert position is not None
        return partial(self.take, position)

    def take(self, position: Position) -> None:
        """One iteration, on as many of the images as the strategy takes beside replay."""
        real = self.strategy.real_count(position)
        self.strategy.step(self.images[:real], self.labels[:real], position)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("recipes", nargs="*", default=["fundus-cpu"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="over the recipe, as in relay train")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--tables", nargs="+", choices=["phases", "compare"], default=["phases"])


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill the tables: iterations by phase, or whole ones with and without the compiled ops."""
    torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    settings = {recipe: load_run(recipe, args.set).site(1) for recipe in args.recipes}
    if "compare" in args.tables:
        compare(settings, device, args.repeat, record)
    if "phases" not in args.tables:
        return
    found = {recipe: phases(one, device, args.repeat) for recipe, one in settings.items()}
    _phase_table(found, device, record)
    operations_table(settings, device, args.repeat, record)


def _phase_table(found: dict[str, dict[str, float]], device: torch.device, record: Record) -> None:
    table = record.table("Seconds of an iteration, medians", {str(device): "", **dict.fromkeys(found, ".3f")})
    for phase in next(iter(found.values())):
        table.add(phase, *(one[phase] for one in found.values()))
    record.facts["peak_memory_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    record.note(f"Peak memory {record.facts['peak_memory_gib']} GiB.")


def compare(settings: dict[str, SiteSettings], device: torch.device, repeat: int, record: Record) -> None:
    """Whole iterations of a second site with RELAY_OPS=auto and =reference, in turn."""
    heads = {"recipe": "", "iteration": "", "library s": ".3f", "torch s": ".3f", "torch / library": ".2f"}
    table = record.table(
        f"The compiled ops ({loader.backend(device.type, device.index)}) against torch's own on {device}", heads
    )
    for recipe, one in settings.items():
        trained = Trained(one, device)
        trained.strategy.begin_site("second", 100)
        for name, kind in (("plain", PLAIN), (REGULARISED, REGULARISED)):
            run = trained.step(kind)
            with _ops_restored():
                times = alternate(
                    {"auto": run, "reference": run},
                    repeat,
                    partial(seconds, device=device),
                    before=partial(_use_ops, device),
                )
            middle = {form: statistics.median(each) for form, each in times.items()}
            table.add(recipe, name, middle["auto"], middle["reference"], ratio(times["reference"], times["auto"]))


def _use_ops(device: torch.device, form: str) -> None:
    os.environ["RELAY_OPS"] = form
    loader.forget()
    loader.backend(device.type, device.index)  # tries the library out, before the clock runs


@contextmanager
def _ops_restored() -> Iterator[None]:
    before = os.environ.get("RELAY_OPS")
    try:
        yield
    finally:
        os.environ.pop("RELAY_OPS", None) if before is None else os.environ.update(RELAY_OPS=before)
        loader.forget()


def phases(settings: SiteSettings, device: torch.device, repeat: int) -> dict[str, float]:
    """Median seconds of whole iterations, and of the phases of one."""
    trained = Trained(settings, device)
    strategy = trained.strategy

    def clock(function: Callable[[], object]) -> float:
        return statistics.median([seconds(function, device) for _ in range(repeat + WARM_UP)][WARM_UP:])

    result = {"iteration, first site": clock(trained.step(PLAIN))}
    strategy.begin_site("second", 100)
    result["iteration, second site"] = clock(trained.step(PLAIN))
    result[REGULARISED] = clock(trained.step(REGULARISED))
    if trained.find(ALONE):
        result[ALONE] = clock(trained.step(ALONE))
    parts = {
        "G step": (strategy.gan, "_generator_step"),
        "D step": (strategy.gan, "_discriminator_step"),
        "solver step": (strategy, "_solver_step"),
        "replay": (strategy, "_replay"),
        "solver's augmentation": (strategy, "augment"),
    }
    plain = split(trained.step(PLAIN), parts, repeat, device)
    regularised = split(trained.step(REGULARISED), parts, repeat, device)
    result |= plain
    adversarial = ("G step", "D step")
    result["path length + R1"] = sum(regularised[name] - plain[name] for name in adversarial)
    pipe, condition = strategy.gan.pairs[-1].pipe, strategy.codec.encode(trained.labels)
    both = torch.cat([trained.images, condition], dim=1)
    for p in (0.0, 0.2):
        result[f"adaptive augmentation, p {p:g}"] = clock(partial(pipe, both, p))
    return result


def operations_table(settings: dict[str, SiteSettings], device: torch.device, repeat: int, record: Record) -> None:
    """Operations of an iteration of a second site, its speed, and that as a share of what the machine can do."""
    a, image = torch.rand(2048, 2048, device=device), torch.rand(16, 256, 64, 64, device=device)
    image, weight = image.to(memory_format=torch.channels_last), torch.rand(256, 256, 3, 3, device=device)
    runs: dict[str, Callable[[], object]] = {
        "product": lambda: a @ a,
        "convolution": lambda: conv2d(image, weight, padding=1),
    }
    heads = {"recipe": "", "iteration, second site": "", "GFLOP": ".1f", "GFLOP/s": ".0f", "of a product's": ".0%",
             "of a convolution's": ".0%"}  # fmt: skip
    table = record.table(
        f"Operations of an iteration, and the share of the speed of a large product and convolution, {device}", heads
    )
    for recipe, one in settings.items():
        trained = Trained(one, device)
        trained.strategy.begin_site("second", 100)
        kinds = [kind for kind in (PLAIN, REGULARISED, ALONE) if trained.find(kind)]
        steps = {kind: trained.step(kind) for kind in kinds}
        counts = {name: _count(run) for name, run in (runs | steps).items()}
        times = alternate(runs | steps, repeat, partial(seconds, device=device))
        speed = {name: counts[name] / statistics.median(taken) / 1e9 for name, taken in times.items()}
        for name in kinds:
            shares = (speed[name] / speed[peak] for peak in runs)
            table.add(recipe, name, counts[name] / 1e9, speed[name], *shares)
        record.note(f"{recipe}: product {speed['product']:.0f} GFLOP/s, convolution {speed['convolution']:.0f}.")


def _count(run: Callable[[], object]) -> int:
    with operations() as counted:
        run()
    return counted.count


def split(run: Callable[[], None], parts: dict[str, tuple[Any, str]], repeat: int, device: torch.device) -> dict[str, float]:
    """Median seconds that the parts of a run take inside it: attributes of objects, by name, that are called."""
    rounds: dict[str, list[float]] = {name: [] for name in parts}
    taken: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            results: list[Any] = []
            taken[name] += seconds(lambda: results.append(function(*args, **kwargs)), device)
            return results[0]

        return call

    originals = {name: getattr(*place) for name, place in parts.items()}
    for name, (owner, attribute) in parts.items():
        setattr(owner, attribute, timed(name, originals[name]))
    try:
        for turn in range(repeat + WARM_UP):
            taken.clear()
            run()
            if turn >= WARM_UP:
                for name, each in rounds.items():
                    each.append(taken[name])
    finally:
        for name, (owner, attribute) in parts.items():
            setattr(owner, attribute, originals[name])
    return {name: statistics.median(each) for name, each in rounds.items()}


main = script(__doc__, arguments, measure, toy={"set": TOY, "repeat": 1, "threads": 1, "recipes": ["fundus-cpu"]})

if __name__ == "__main__":
    main()
