"""A short relay on phantoms: Dice of every site's model on every test set, and how long it took.

python -m benchmarks.relay phantom
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import trained
from benchmarks.record import Record, script
from relay_core import events
from relay_core.engine import choose_device


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("recipe", nargs="?", default="phantom")
    trained.arguments(parser)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")


def measure(args: argparse.Namespace, record: Record) -> None:
    """Train, and fill the matrix."""
    torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    rates: dict[str, list[float]] = {}

    def heed(event: events.Event) -> None:
        if isinstance(event, events.Step):
            rates.setdefault(event.site, []).append(event.images_per_second)

    with tempfile.TemporaryDirectory() as folder:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        begin = time.monotonic()
        matrix = trained.run_relay(Path(folder), args.recipe, args, device, heed)["dice_per_sample"]
        record.facts |= {
            "device": str(device), "seconds": round(time.monotonic() - begin, 2), "images_per_second": rates,
            "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
            "matrix": json.loads(matrix.to_json()),
        }  # fmt: skip
    table = record.table(f"Dice, relay of {args.recipe} on {device}", {"after": "", **dict.fromkeys(matrix.columns, ".3f")})
    for site, row in zip(matrix.rows, matrix.values, strict=True):
        table.add(site, *row)
    record.note(f"{record.facts['seconds']} s with scoring.")


main = script(__doc__, arguments, measure, toy={**trained.TOY_RELAY, "sites": 2, "threads": 1})

if __name__ == "__main__":
    main()
