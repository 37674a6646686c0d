"""How much each strategy remembers: several seeds of several runs on one data set, one table.

    python benchmarks/learning.py --data ../shared/data/phantom_bench --out runs/learning

Every run has the same budget, solver and augmentation, but where its name says otherwise. Finished runs are kept in
`--results` and not repeated; an interrupted one goes on where it was. `--jobs 2` plays two runs at a time, each on its
share of the cores: on small images that gets more done than one run on all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

RECIPE = "fundus-cpu"
RUNS: dict[str, tuple[str, list[str]]] = {
    "relay": (RECIPE, []),
    "sequential": (f"{RECIPE}-sequential", []),
    "joint": (f"{RECIPE}-joint", []),
    "local": (f"{RECIPE}-local", []),
    "sequential, no augmentation": (f"{RECIPE}-sequential-plain", []),
}
"""Name in the table -> recipe and overrides."""
ABLATIONS: dict[str, list[str]] = {
    "teacher: current": ["model.kwargs.corrections.teacher=current"],
    "no distillation": ["model.kwargs.solver_distil_weight=0"],
    "frozen: train": ["model.kwargs.corrections.frozen=train"],
    "no generator average": ["model.kwargs.generator_ema_kimg=0"],
    "conditioning: raw": ["model.kwargs.corrections.conditioning=raw"],
    "fake_label_noise: false": ["model.kwargs.corrections.fake_label_noise=false"],
    "codes: bank": ["model.kwargs.corrections.codes=bank"],
    "share_replay: false": ["model.kwargs.corrections.share_replay=false"],
    "replay_targets: map": ["model.kwargs.corrections.replay_targets=map"],
    "replay_targets: teacher": ["model.kwargs.corrections.replay_targets=teacher"],
    "replay_noise: random": ["model.kwargs.corrections.replay_noise=random"],
    "replay_data_ratio: even": ["model.kwargs.replay_data_ratio=even"],
    "num_stages: 2": ["model.kwargs.num_stages=2"],
    "num_stages: 2, parameters merged alone": [
        "model.kwargs.num_stages=2", "model.kwargs.corrections.merge_buffers=false",
    ],
}  # fmt: skip
"""One switch each, away from the recipe."""


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the sites")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"), help="checkpoints and pictures")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "phantom_bench")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", choices=[*RUNS, *ABLATIONS, "ablations"], default=list(RUNS))
    parser.add_argument("--iterations", type=int, default=600, help="budget of a site, in batches of 16")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    names = [n for name in args.runs for n in (ABLATIONS if name == "ablations" else [name])]
    args.results.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda run: _run(*run, args), [(name, seed) for seed in args.seeds for name in names]))
    print(table(args.results, names))


def _slug(name: str) -> str:
    return name.replace(": ", "-").replace(", ", "-").replace(" ", "-")


def _run(name: str, seed: int, args: argparse.Namespace) -> None:
    recipe, overrides = RUNS.get(name) or (RECIPE, ABLATIONS[name])
    target = args.results / f"{_slug(name)}-seed{seed}.json"
    if target.is_file():
        return
    out = args.out / f"{_slug(name)}-seed{seed}"
    command = [sys.executable, "-m", "relay_core", "train", recipe, "--data-root", str(args.data), "--out", str(out)]
    overrides = [f"train.num_mimgs={args.iterations * 16 / 1e6}", *overrides]
    command += ["--seed", str(seed), "--resume", "--json", *(part for line in overrides for part in ("--set", line))]
    begin = time.monotonic()
    threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.splitlines()
    matrices = json.loads(lines[-1])
    result = {"run": name, "seed": seed, "seconds": round(time.monotonic() - begin), "matrices": matrices}
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{name}, seed {seed}: {final(result)}", file=sys.stderr, flush=True)


def final(result: dict) -> list[float]:
    """Dice per sample on each test set at the end; of each site's own model for `local`."""
    values = result["matrices"]["dice_per_sample"]["values"]
    if result["run"] == "local":
        return [round(row[i], 4) for i, row in enumerate(values)]
    return [round(value, 4) for value in values[-1]]


def table(results: Path, names: list[str]) -> str:
    """Mean and spread over seeds of the final Dice on each site."""
    lines = []
    for name in names:
        found = [json.loads(path.read_text()) for path in sorted(results.glob(f"{_slug(name)}-seed*.json"))]
        if not found:
            continue
        finals = [final(result) for result in found]
        if not lines:
            sites = found[0]["matrices"]["dice_per_sample"]["columns"]
            lines = [f"| run | seeds | {' | '.join(sites)} | mean of sites (each seed) |", "|---" * (3 + len(sites)) + "|"]
        cells = [_spread([row[i] for row in finals]) for i in range(len(finals[0]))]
        means = [statistics.mean(row) for row in finals]
        each = ", ".join(f"{mean:.3f}" for mean in means)
        lines.append(f"| {name} | {len(found)} | {' | '.join(cells)} | **{_spread(means)}** ({each}) |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


if __name__ == "__main__":
    main()
