"""Whether the privacy audit finds what is there, and nothing where nothing is: phantoms, recipe `phantom`.

python -m benchmarks.privacy --images 8 32 128 --steps 100 400 1600

Overfitted relays: one site of few images, trained long, without augmentation, audited on its way. False alarms: a relay is
audited by images that it never saw, of which some are called members by luck.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import TOY, Record, script
from relay_core.bundle import Policy, judge
from relay_core.config import RunFile, load_run
from relay_core.data import SiteData, load_site, make_phantoms
from relay_core.engine import Checkpoint, RelayRun, checkpoint
from relay_core.privacy import Audit, Groups, attacks, copying, judged, map_distances, pixel_distances

CPU = torch.device("cpu")
SHOWN = ("solver", "D_img", "D_label", "inversion", "nearest_label_maps")
"""Attacks that have a column."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--images", type=int, nargs="+", default=[8, 32, 128], help="training images of the site")
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 400, 1600], help="where it is audited")
    parser.add_argument("--side", type=int, default=16, help="side of the images in pixels")
    parser.add_argument("--tests", type=int, default=96, help="test images of the site")
    parser.add_argument("--samples", type=int, default=2000, help="generated images")
    parser.add_argument("--splits", type=int, default=100, help="audits of images that nobody trained on")


def measure(args: argparse.Namespace, record: Record) -> None:
    """Audit relays that learn their images by heart, and one by images that it does not know."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        other = _trained(folder / "other", args, record, max(args.images), min(args.steps), seed=99)
        _leaks(folder, args, record, other)
        _false_alarms(folder, args, record, other)


def _run(data: Path, args: argparse.Namespace, steps: int) -> RunFile:
    settings = [
        f"train.num_mimgs={steps * 16e-6}", "train.augment=none",
        f"model.kwargs.img_resolution={args.side}", "train.optimizer.lr_scheduler=null",
    ]  # fmt: skip
    return load_run("phantom", [*settings, *(TOY if args.toy else [])])


def _trained(folder: Path, args: argparse.Namespace, record: Record, images: int, steps: int, seed: int) -> Checkpoint:
    """Train a first site in `folder`, or go on with it."""
    data = folder / "data"
    if not data.is_dir():
        make_phantoms(data, 1, train=images, test=args.tests, size=32, seed=seed)
    run = _run(data, args, steps)
    RelayRun(run, folder / "out", data, CPU, only=1, resume=True)()
    return checkpoint.find(folder / "out/task_1", record.note)


def _leaks(folder: Path, args: argparse.Namespace, record: Record, reference: Checkpoint) -> None:
    table = record.table(
        f"Audits of relays that learn few phantoms by heart, {args.tests} test images, no augmentation",
        {
            "training images": "d", "steps": "d", "solver, AUC": ".2f", "D_img": ".2f", "D_label": ".2f", "inversion": ".2f",
            "label maps": ".2f", "all together": ".2f", "its interval": "", "close to one": ".1%", "outcome": "",
            "seconds": ".0f",
        },
    )  # fmt: skip
    for images in args.images:
        home = folder / f"n{images}"
        for steps in sorted(args.steps):
            source = _trained(home, args, record, images, steps, seed=0)
            run = _run(home / "data", args, steps)
            report, _ = Audit(
                source, run, home / "audit", home / "data", CPU, reference, samples=args.samples, any_reference=True
            )()
            auc = {attack["name"]: attack["auc"] for attack in report["attacks"]}
            combined = report["combined"]
            low, high = combined["auc_interval"]
            table.add(
                images, steps, *(auc[name] for name in SHOWN), combined["auc"],
                f"{low:.2f} to {high:.2f}", report["copies"][0]["close"], judge(report, Policy()).outcome, report["seconds"],
            )  # fmt: skip


def _false_alarms(folder: Path, args: argparse.Namespace, record: Record, source: Checkpoint) -> None:
    """Audit one checkpoint by images that it never saw, `--splits` times: each time other ones are called members."""
    count = 3 * args.tests
    data = folder / "unseen"
    make_phantoms(data, 1, train=count, test=1, size=32, seed=7)
    settings = _run(data, args, min(args.steps)).site(1)
    unseen = load_site("fundus", settings.data, folder=data / "Domain1", split="train", resolution=args.side)
    third = _trained(folder / "third", args, record, max(args.images), min(args.steps), 98)
    own, images, distances = _scores(source, unseen, args)
    reference = _scores(third, unseen, args)[0]
    between = pixel_distances(images, images, _tick)
    outcomes, found = [], []
    for split in range(args.splits):
        order = np.random.default_rng(split).permutation(count)
        groups = Groups.of([f"m{i}" for i in range(2 * args.tests)], [f"o{i}" for i in range(args.tests)])
        shuffled = [{name: values[order] for name, values in each.items()} for each in (own, reference)]
        rows, combined = judged(*shuffled, groups, np.ones(count, bool))
        copies = [
            {"name": "pixels", **copying(distances[:, order], between[order][:, order], groups, split), "counts": True}
        ]
        counts = {"members": 2 * args.tests, "others": args.tests}
        counts |= {"member_patients": counts["members"], "other_patients": counts["others"]}
        report = {"attacks": rows, "combined": combined, "copies": copies, "counts": counts, "doubts": []}
        outcomes.append(judge(report, Policy()).outcome)
        found.append(combined["auc_interval"][1])
    table = record.table(
        f"Audits by {2 * args.tests} 'members' and {args.tests} others, none of which was trained on",
        {"audits": "d", "failed": ".0%", "inconclusive": ".0%", "passed": ".0%", "upper end, median": ".2f"},
    )
    shares = [outcomes.count(outcome) / args.splits for outcome in ("failed", "inconclusive", "passed")]
    table.add(args.splits, *shares, float(np.median(found)))


def _tick() -> None:
    """Nobody watches, nobody stops."""


def _scores(source: Checkpoint, data: SiteData, args: argparse.Namespace) -> tuple[dict[str, Any], Tensor, Tensor]:
    """The scores of a checkpoint for images that it never saw, these at the generators' size, and how near it draws them."""
    images, labels = data.unit_batch(range(len(data)))
    target = attacks.Target.of(source, CPU, "Domain1")
    images, maps = attacks.of_game(target, images * 2 - 1, labels)
    scores = {"solver": attacks.solver_scores(target, images, labels, _tick)}
    scores |= attacks.discriminator_scores(target, images, maps, _tick)
    scores["inversion"] = attacks.inversion_scores(target, images, maps, _tick)
    generated, drawn_maps = attacks.drawn(target, args.samples, _tick)
    distances = pixel_distances(generated, images, _tick)
    classes = target.strategy.settings.data.num_classes
    scores["nearest_pixels"] = -distances.min(dim=0).values
    scores["nearest_label_maps"] = -map_distances(drawn_maps, maps, classes).min(dim=0).values
    return {name: values.double().numpy() for name, values in scores.items()}, images, distances


main = script(
    __doc__, arguments, measure,
    toy={"images": [8], "steps": [4], "side": 16, "tests": 8, "samples": 100, "splits": 3},
)  # fmt: skip

if __name__ == "__main__":
    main()
