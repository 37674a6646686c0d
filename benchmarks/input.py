"""A training's input where the images do not fit into memory: decoded when their batch is due, or ahead of need.

python -m benchmarks.input --images 720 --side 1024

A step takes as long as decoding its batch does: once it waits, as for a GPU, and once it keeps all CPU threads busy.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.record import Record, script
from benchmarks.timing import alternate, ratio
from relay_core.config import load_run
from relay_core.data import SiteData, load_site, make_phantoms
from relay_core.engine import Feed, Stream

HEAD_START = 4
"""Batches that are taken before the clock counts, as a queue filled up while the other form ran."""


DRAWN = 24
"""Images that are drawn, a second each at 1024 pixels; the others are copies, which take as long to decode."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--images", type=int, default=720)
    parser.add_argument("--side", type=int, default=1024, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=10, help="batches of a timed run")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode ahead; 0: one a core")
    parser.add_argument("--repeat", type=int, default=5)


def measure(args: argparse.Namespace, record: Record) -> None:
    """Time both forms in turn, with steps that wait and steps that compute."""
    table = record.table(
        f"Seconds a step of {args.batch} images of {args.side} pixels, decoded when due and ahead",
        {"the step": "", "its own seconds": ".3f", "when due": ".3f", "ahead": ".3f", "ratio": ".2f"},
    )
    with tempfile.TemporaryDirectory() as folder:
        images = _too_large(Path(folder), args)
        record.facts["decoded_gib"] = args.images * args.side**2 * 3 / 2**30
        device, stream = torch.device("cpu"), Stream(len(images), 0)
        feed = Feed(images, Stream(len(images), 0), device, args.workers or os.cpu_count() or 1, args.batch)
        begin = time.perf_counter()
        for _ in range(HEAD_START):
            images.batch(stream.take(args.batch))
        own = (time.perf_counter() - begin) / HEAD_START
        steps: dict[str, Callable[[], object]] = {"waits": lambda: time.sleep(own), "computes": _busy(own)}
        for name, step in steps.items():
            forms = {
                "when due": lambda step=step: [(images.batch(stream.take(args.batch)), step()) for _ in range(args.batches)],
                "ahead": lambda step=step: [(feed.take(args.batch), step()) for _ in range(args.batches)],
            }

            def drain(form: str) -> None:
                for _ in range(HEAD_START if form == "ahead" else 0):
                    feed.take(args.batch)

            times = alternate(forms, args.repeat, _clock, drain, warm_up=1)
            due, ahead = (statistics.median(times[form]) / args.batches for form in forms)
            table.add(name, own, due, ahead, ratio(times["when due"], times["ahead"]))
        feed.close()
    record.note("The processes that decode ahead count as other work here.")


def _too_large(folder: Path, args: argparse.Namespace) -> SiteData:
    """Make a site whose images are not kept in memory, whatever their number."""
    drawn = min(args.images, DRAWN)
    make_phantoms(folder, 1, train=drawn, test=1, size=args.side)
    for kind in ("image", "mask"):
        files = sorted((folder / f"Domain1/train/ROIs/{kind}").iterdir())
        for i in range(drawn, args.images):
            copied = files[i % drawn]
            shutil.copy(copied, copied.with_stem(f"{copied.stem}-{i}"))
    settings = load_run("fundus-cpu").site(1)
    with patch.dict(vars(sys.modules[SiteData.__module__]), IN_MEMORY_BYTES=0):
        return load_site("fundus", settings.data, folder=folder / "Domain1", split="train", resolution=args.side)


def _busy(seconds: float) -> Callable[[], object]:
    """Return a step that keeps torch's threads busy for about `seconds`."""
    matrix = torch.randn(1024, 1024)
    begin = time.perf_counter()
    for _ in range(8):
        matrix @ matrix
    times = max(1, round(seconds * 8 / (time.perf_counter() - begin)))
    return lambda: [matrix @ matrix for _ in range(times)]


def _clock(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


main = script(
    __doc__, arguments, measure, toy={"images": 8, "side": 32, "batch": 4, "batches": 2, "repeat": 1, "workers": 1}
)

if __name__ == "__main__":
    main()
