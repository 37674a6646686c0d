"""A short relay on phantoms, for what needs a trained model. Loads torch late: who measures memory imports this."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from benchmarks.record import TOY
from relay_core.config import load_run
from relay_core.events import Emit, ignore

if TYPE_CHECKING:
    import torch

    from relay_core.metrics import ScoreMatrix

TOY_RELAY = {"set": [*TOY, "train.num_mimgs=4e-6"], "images": [4, 2], "sites": 1}
"""What the options are under `--toy`."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a relay on phantoms."""
    parser.add_argument("--sites", type=int, help="phantom sites; default: all of the recipe")
    parser.add_argument(
        "--images", type=int, nargs=2, default=[60, 30], metavar=("TRAIN", "TEST"), help="of each phantom site"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="over the recipe, as in relay train")


def short_relay(folder: Path, args: argparse.Namespace) -> tuple[Path, Path]:
    """Train recipe `phantom` into `folder/relay` on the CPU; return that folder and that of the images."""
    import torch

    run_relay(folder, "phantom", args, torch.device("cpu"))
    return folder / "relay", folder / "phantoms"


def run_relay(
    folder: Path, recipe: str, args: argparse.Namespace, device: torch.device, emit: Emit = ignore
) -> dict[str, ScoreMatrix]:
    """Make phantoms in `folder/phantoms` and train a recipe on them into `folder/relay`; return the matrices by metric.

    Args:
        folder: an empty folder.
        recipe: the recipe.
        args: with what `arguments` added.
        device: the device to train on.
        emit: receives the events.
    """
    from relay_core.data import make_phantoms
    from relay_core.engine import RelayRun

    count = args.sites or len(load_run(recipe).task_ids)
    lines = {"extends": recipe, "current_tasks": {"task_ids": list(range(1, count + 1))}}
    (folder / "given.yaml").write_text(yaml.safe_dump(lines))
    run, (train, test) = load_run(folder / "given.yaml", args.set), args.images
    make_phantoms(folder / "phantoms", count, train, test)
    return RelayRun(run, folder / "relay", folder / "phantoms", device, emit=emit)()
