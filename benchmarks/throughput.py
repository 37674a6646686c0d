"""Images a second of a training by batch size and precision, with the share of idle time and the most memory.

    python -m benchmarks.throughput fundus --batches 16 128

A second site of a relay in its last stage, with replay: windows of 16 iterations, so that the lazy regularisations come as
often as in a training. Images are random and come from the host's memory. The precisions take turns; images a second are
medians.

`fp32` and `TF32` are both `precision: 32` of a run file: `relay train` lets a GPU round to TF32, `fp32` forbids it here.
Idle is when the device did not compute: on a GPU 1 - (union of its kernels' times) / (seconds without a profiler) over four
iterations, on a CPU the part of the threads' time that the process did not use.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.record import TOY, Record, script
from benchmarks.timing import alternate, ratio, seconds
from benchmarks.train import Trained
from relay_core.config import load_run
from relay_core.cuda import loader
from relay_core.engine import choose_device
from relay_core.errors import RelayError
from relay_core.strategies import Position

PRECISIONS = {"fp32": ("32", False), "TF32": ("32", True), "bf16": ("bf16", True), "fp16": ("16", True)}
"""Name -> `precision` of the run file, and whether the rest may be rounded to TF32."""
WINDOW, PROFILED = 16, 4
"""Iterations that are timed together, and those that are profiled."""
STEPS = 200_000
"""Iterations of the budget that a window is taken from, behind its middle."""


@dataclass
class Case:
    """A training in one precision."""

    name: str
    trained: Trained
    tf32: bool
    idle: float | None = None
    peak_gib: float | None = None
    done: int = 0

    def run(self, count: int, device: torch.device) -> None:
        """Train for `count` iterations, from a multiple of the window's length on."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
        first = STEPS // 2 + self.done
        for step in range(first, first + count):
            position = Position(step, STEPS, STEPS)
            real = self.trained.strategy.real_count(position)
            images, labels = self.trained.images[:real], self.trained.labels[:real]
            self.trained.strategy.step(images.to(device), labels.to(device), position)
        self.done += WINDOW


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("recipe", nargs="?", default="fundus")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="over the recipe, as in relay train")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeat", type=int, default=5, help="windows of each precision")


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill one table."""
    torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    names = args.precisions if device.type == "cuda" else [name for name in args.precisions if name in ("fp32", "bf16")]
    if len(names) < len(args.precisions):
        record.note(
            f"A CPU computes in fp32 and bf16 alone: not measured are {', '.join(sorted({*args.precisions} - {*names}))}."
        )
    record.facts |= {"device": str(device), "library": loader.backend(device.type, device.index)}
    heads = {
        "batch": "d",
        "precision": "",
        "images/s": ".1f",
        f"as fast as {names[0]}": ".2f",
        "idle": ".0%",
        "peak GiB": ".2f",
    }
    table = record.table(f"Training of {args.recipe} on {device}", heads)
    for batch in args.batches:
        cases = [case for name in names if (case := begin(name, batch, args, device, record)) is not None]
        runs = {case.name: partial(case.run, WINDOW, device) for case in cases}
        times = alternate(runs, args.repeat, partial(seconds, device=device), warm_up=0)
        for case in cases:
            taken, first = times[case.name], times[cases[0].name]
            rate = batch * WINDOW / statistics.median(taken)
            table.add(
                batch, case.name, rate, ratio(first, taken) if cases[0].name == names[0] else None, case.idle, case.peak_gib
            )
        del cases, runs
        gc.collect()


def begin(name: str, batch: int, args: argparse.Namespace, device: torch.device, record: Record) -> Case | None:
    """Build a training, warm it up, and measure its idle time and memory; None, with a note, where it does not run."""
    precision, tf32 = PRECISIONS[name]
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        settings = load_run(args.recipe, [*args.set, f"train.batch_size={batch}", f"train.precision={precision}"]).site(1)
        case = Case(name, Trained(settings, device), tf32)
        case.trained.images, case.trained.labels = case.trained.images.cpu(), case.trained.labels.cpu()
        case.trained.strategy.begin_site("second", 100)
        case.run(PROFILED, device)
        case.idle = idle_share(case, device)
    except (RelayError, RuntimeError) as error:  # too little memory among them
        record.note(f"batch {batch}, {name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        return None
    if device.type == "cuda":
        case.peak_gib = (torch.cuda.max_memory_allocated(device) - before) / 2**30
    return case


def idle_share(case: Case, device: torch.device) -> float:
    """Share of the seconds of a few iterations in which the device did not compute."""
    run = partial(case.run, PROFILED, device)
    if device.type != "cuda":
        begin = time.process_time()
        taken = seconds(run, device)
        return max(0.0, 1 - (time.process_time() - begin) / (taken * torch.get_num_threads()))
    taken = statistics.median(seconds(run, device) for _ in range(3))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seconds(run, device)
    kernels = (
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    )
    return max(0.0, 1 - union(kernels) / 1e6 / taken)


def union(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans, which may overlap."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


main = script(
    __doc__, arguments, measure,
    toy={"recipe": "fundus-cpu", "set": TOY, "batches": [4], "repeat": 1, "threads": 1, "precisions": ["fp32", "TF32"]},
)  # fmt: skip

if __name__ == "__main__":
    main()
