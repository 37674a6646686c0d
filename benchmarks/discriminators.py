"""What a relay loses where bundles leave without discriminators: megabytes, Dice at the sites after, and the replay.

    python -m benchmarks.discriminators phantom --seeds 3
    python -m benchmarks.discriminators benchmarks/real/wbc.yaml --data-root DATA --seeds 3

The first site is trained once a seed. Each form then goes its way through signed bundles; what the second site's generators
lost shows at the third.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import trained
from benchmarks.bundle import acquainted
from benchmarks.record import Record, Table, script
from relay_core.bundle import KnownRelays, Provenance, export_bundle, import_bundle
from relay_core.config import RunFile, load_run
from relay_core.data import make_phantoms
from relay_core.engine import RelayRun, checkpoint, choose_device, hand_over_layout
from relay_core.experiments import score_generators
from relay_core.metrics import headline

FORMS = {"with": True, "without": False}
QUALITY = ("precision", "recall", "density", "coverage")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("run", nargs="?", default="phantom", help="recipe or run file of a relay of three sites or more")
    parser.add_argument("--data-root", type=Path, help="its images; default: phantoms are made")
    parser.add_argument(
        "--images", type=int, nargs=2, default=[60, 30], metavar=("TRAIN", "TEST"), help="of each phantom site"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="over the run file, as in relay train"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=200, help="most generated images of a site that are compared")
    parser.add_argument("--keep", type=Path, help="an empty folder that keeps the trainings; default: none does")
    parser.add_argument("--device", default="cpu")


def measure(args: argparse.Namespace, record: Record) -> None:
    """Train each seed's relay in both forms, and fill the tables."""
    with tempfile.TemporaryDirectory() as name:
        folder, data = args.keep or Path(name), args.data_root
        runs = [load_run(args.run, [*args.set, f"random_seed={seed}"]) for seed in range(args.seeds)]
        tests = [runs[0].site(i).name for i in runs[0].task_ids]
        if data is None:
            data = folder / "phantoms"
            make_phantoms(data, len(tests), *args.images)
        heads = {"seed": "d", "discriminators": "", "after": "", "MB it received": ".2f", **dict.fromkeys(tests, ".3f")}
        dice = record.table("Dice after each site, by what its bundle held", {**heads, "mean of seen": ".4f"})
        device, replayed = choose_device(args.device), []
        for seed, run in enumerate(runs):
            home = folder / f"seed-{seed}"
            RelayRun(run, home / "first", data, device, only=run.task_ids[0])()
            for form in FORMS:
                replayed += _relay(home, form, seed, run, data, device, args, dice)
        heads = {"seed": "d", "discriminators": "", "after": "", "replay of": "", **dict.fromkeys(QUALITY, ".2f")}
        heads |= {"solver agrees": ".3f", "Frechet": ".3g"}
        replay = record.table("Replay of the generators against the sites' training images", heads)
        for row in replayed:
            replay.add(*row)
        _summary(dice, record)


def _relay(
    home: Path, form: str, seed: int, run: RunFile, data: Path, device: torch.device, args: argparse.Namespace, dice: Table
) -> list[tuple[Any, ...]]:
    """Hand the first site's model on from site to site in one form of bundle; return what the generators are worth."""
    sender, receiver = acquainted(home / form / "keys")
    out, parent, replayed = home / "first", None, []
    for hop, (task_id, following) in enumerate(zip(run.task_ids, run.task_ids[1:], strict=False), 1):
        source = checkpoint.find(out / run.site(task_id).folder_name, print)
        path = home / form / f"hop-{hop}" / "out.relay"
        size = export_bundle(source.path, run, sender, path, parent=parent, discriminators=FORMS[form]).size
        out = home / form / f"site-{hop + 1}"
        import_bundle(path, KnownRelays({run.digest: (run, following)}, []), receiver, out, hand_over_layout)
        parent = Provenance.read(out / "bundle/provenance.json")
        RelayRun(run, out, data, device, only=following)()
        made = run.site(following)
        scores = json.loads((out / made.folder_name / "scores.json").read_text())["scores"]
        row = [headline(scores[run.site(i).name])[1] for i in run.task_ids]
        dice.add(seed, form, made.name, size / 1e6, *row, statistics.fmean(row[: hop + 1]))
        if following != run.task_ids[-1]:  # at the last site the solver learns alone
            made_here = checkpoint.find(out / made.folder_name, print)
            for site, of_site in score_generators(made_here, run, data, None, args.count, device).items():
                frechet = next(value for key, value in of_site.items() if key.startswith("fid"))
                quality = [of_site[key] for key in QUALITY]
                replayed.append((seed, form, made.name, site, *quality, of_site.get("agreement"), frechet))
    return replayed


def _summary(dice: Table, record: Record) -> None:
    """Means over the seeds, and of the differences at the same seed."""
    heads = {"after": "", "with": ".4f", "without": ".4f", "without less with": "+.4f", "its spread over seeds": ".4f"}
    table = record.table("Mean Dice of the sites seen so far, over the seeds", heads)
    for after in dict.fromkeys(row["after"] for row in dice.rows):
        by_form = {
            form: [row["mean of seen"] for row in dice.rows if (row["after"], row["discriminators"]) == (after, form)]
            for form in FORMS
        }
        lost = [b - a for a, b in zip(by_form["with"], by_form["without"], strict=True)]
        spread = statistics.stdev(lost) if len(lost) > 1 else None
        table.add(after, *(statistics.fmean(values) for values in by_form.values()), statistics.fmean(lost), spread)


main = script(__doc__, arguments, measure, toy={"set": trained.TOY_RELAY["set"], "images": [4, 2], "seeds": 1, "count": 4})

if __name__ == "__main__":
    main()
