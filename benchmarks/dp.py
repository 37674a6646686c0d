"""What differentially private training costs: epsilon against Dice after replay, on phantoms or on a run file's own images.

python -m benchmarks.dp
python -m benchmarks.dp --run benchmarks/real/wbc.yaml --data DATA/wbc

Every row is a relay of the first two sites with the same networks, norm, budget and batch; the first row has no noise and no
clipping, and the images of a pass in turn.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import yaml

from benchmarks.record import TOY, Record, script
from relay_core.config import RunFile, load_run
from relay_core.data import make_phantoms
from relay_core.engine import RelayRun, checkpoint

CPU = torch.device("cpu")
SETTINGS = ["model.kwargs.recoloured_share=0", "model.kwargs.solver_kwargs.norm=group", "model.kwargs.gan_at_last_site=true"]
"""What private training needs, and what the rows without it have too."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--run", default="phantom", help="recipe or run file; its first two sites are trained")
    parser.add_argument("--data", type=Path, help="its images; default: phantoms, made for this")
    parser.add_argument("--images", type=int, default=200, help="training images of each phantom site")
    parser.add_argument("--noise", type=float, nargs="*", default=[0.01, 0.1, 1], help="noise multipliers")
    parser.add_argument("--clip", type=float, default=1.0, help="largest norm of a gradient")
    parser.add_argument("--delta", type=float, default=1e-3)
    parser.add_argument("--strategies", nargs="+", default=["relay", "baseline"], help="each with every noise")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="over the run, as in relay train")


def measure(args: argparse.Namespace, record: Record) -> None:
    """Train a relay for each strategy and noise, and fill the table."""
    torch.set_num_threads(args.threads)
    table = record.table(
        f"Two sites of {args.run}: epsilon at delta {args.delta:g} against Dice, gradients clipped to {args.clip:g}",
        {
            "strategy": "", "noise multiplier": "", "epsilon, site 1": ".4g", "epsilon, site 2": ".4g",
            "site 1 after it": ".3f", "site 1 after site 2": ".3f", "site 2": ".3f", "mean after site 2": ".3f",
        },
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        data = args.data
        if data is None:
            data = Path(name) / "phantoms"
            make_phantoms(data, 2, train=args.images, test=8 if args.toy else 60, size=32, seed=0)
        for strategy in args.strategies:
            for noise in [None, *args.noise]:
                out = Path(name) / f"{strategy}-{noise}"
                run = _run(args, strategy, noise, out.with_suffix(".yaml"))
                matrix = RelayRun(run, out, data, CPU)()["dice_per_sample"]
                before, after = (dict(zip(matrix.columns, row, strict=True)) for row in matrix.values)
                first, second = (run.site(i).name for i in run.task_ids)
                facts = [checkpoint.newest(out / f"task_{i}", record.note).meta.get("privacy") for i in run.task_ids]
                epsilons = [None if fact is None else fact["epsilon"] for fact in facts]
                table.add(
                    strategy, "none" if noise is None else f"{noise:g}", *epsilons,
                    before[first], after[first], after[second], (after[first] + after[second]) / 2,
                )  # fmt: skip


def _run(args: argparse.Namespace, strategy: str, noise: float | None, path: Path) -> RunFile:
    """The first two sites of the run; `noise` None trains without privacy."""
    privacy = None if noise is None else {"noise_multiplier": noise, "max_grad_norm": args.clip, "delta": args.delta}
    ids = load_run(args.run).task_ids[:2]
    source = args.run if not Path(args.run).is_file() else str(Path(args.run).resolve())
    lines = {
        "extends": source, "common": {"strategy": {"name": strategy}, "train": {"privacy": privacy}},
        "current_tasks": {"task_ids": ids},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(lines))
    return load_run(path, [*SETTINGS, *args.set, *(TOY if args.toy else [])])


main = script(
    __doc__, arguments, measure,
    toy={"noise": [1.0], "images": 8, "set": ["train.num_mimgs=8e-6"], "strategies": ["relay"]},
)  # fmt: skip

if __name__ == "__main__":
    main()
