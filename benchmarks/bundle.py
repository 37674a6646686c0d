"""What a bundle costs: its size beside the checkpoint, time and memory for 2 GB, and what half precision does to the scores.

    python benchmarks/bundle.py size
    python benchmarks/bundle.py speed --work /tmp
    python benchmarks/bundle.py half --trained demo/relay --data demo/phantoms

Each step runs in a process of its own; its peak memory is what the kernel counted for it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LARGE = """
common:
  dataset: {name: fundus, kwargs: {img_size: 256}}
  strategy: {name: baseline}
  model: {name: U-Net, kwargs: {backbone: plain, base_channels: 256}}
  train: {num_mimgs: 16e-6, batch_size: 16, loss: {name: explog}}
all_tasks_datasets:
- kwargs: {task_id: 1, task_name: A, img_folder: A}
- kwargs: {task_id: 2, task_name: B, img_folder: B}
current_tasks: {task_ids: [1, 2]}
"""
"""Networks of 2 GB in single precision."""


def main() -> None:
    """Run one part and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["size", "speed", "half", "step"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--work", type=Path, default=None, help="where the files go meanwhile; `speed` needs 15 GB")
    parser.add_argument("--trained", type=Path, default=Path("demo/relay"), help="a trained relay with its run.yaml")
    parser.add_argument("--data", type=Path, default=Path("demo/phantoms"), help="its data")
    args = parser.parse_args()
    if args.part == "step":
        _STEPS[args.rest[0]](*map(Path, args.rest[1:]))
        return
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        if args.part == "half":
            _half(Path(work), args.trained, args.data)
        else:
            {"size": _size, "speed": _speed}[args.part](Path(work))


def _run(*command: object) -> tuple[float, float]:
    """Seconds and peak MB of a command; this process is small, since a child's peak begins with its parent's."""
    begin = time.monotonic()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {command}")
    return time.monotonic() - begin, usage.ru_maxrss / 1e3


def _relay(*arguments: object) -> tuple[float, float]:
    return _run(sys.executable, "-m", "relay_core", *arguments)


def _step(name: str, *arguments: object) -> tuple[float, float]:
    return _run(sys.executable, __file__, "step", name, *arguments)


def _keys(work: Path) -> None:
    """A sender `a` and a receiver `b` that trust each other."""
    for name in "ab":
        _relay("keys", "create", "--keys", work / name, "--name", name, "--generate-passphrase")
    _relay("keys", "trust", work / "b" / "card.json", "--keys", work / "a")
    _relay("keys", "trust", work / "a" / "card.json", "--keys", work / "b")


# --- size ---


def _size(work: Path) -> None:
    _keys(work)
    _step("fundus", work)
    run = work / "run.yaml"
    _relay("export", work / "task_1", "--run", run, "--keys", work / "a", "--out", work / "one" / "one.relay")
    options = ["--run", run, "--keys", work / "a", "--parent", work / "one/bundle/provenance.json"]
    print("| recipe fundus, second site | MB | of the checkpoint |\n|---|--:|--:|")
    (checkpoint,) = (work / "task_2").glob("*.safetensors")
    full = checkpoint.stat().st_size
    print(f"| training checkpoint | {full / 1e6:.1f} | |")
    for name, more in (("bundle, float32", []), ("bundle, --half", ["--half"])):
        _relay("export", checkpoint, *options, *more, "--out", work / "two.relay")
        size = (work / "two.relay").stat().st_size
        print(f"| {name} | {size / 1e6:.1f} | {size / full:.1%} |", flush=True)


def _make_fundus(work: Path) -> None:
    """Checkpoints as the first two sites leave them, untrained: every tensor is there, optimizers' included."""
    import torch

    from relay_core.config import load_run
    from relay_core.engine import checkpoint
    from relay_core.strategies import make_strategy

    run = load_run("fundus")
    (work / "run.yaml").write_text(run.canonical())
    cpu = torch.device("cpu")
    run = load_run(work / "run.yaml")
    for count in (1, 2):
        sites = [run.site(i) for i in run.task_ids[:count]]
        strategy = make_strategy(sites[-1].without_pretraining(), cpu)
        for settings in sites:
            strategy.begin_site(settings.name, 100)
        for name in ("old_D_label", "old_D_img"):  # they end with the first stage
            strategy.networks.pop(name, None)
        for updater in strategy.updaters.values():
            for parameter in updater.parameters:
                parameter.grad = torch.zeros_like(parameter)
            updater.optimizer.step()
            for parameter in updater.parameters:
                parameter.grad = None
        state, tensors = checkpoint.collect(strategy, cpu)
        last = sites[-1]
        meta = {
            "run": run.digest, "site": last.name, "task_id": last.task_id, "strategy": strategy.name, "consumed": 0,
            "images": 100, "steps": 1, "settings": last.shared(), **state,
        }  # fmt: skip
        checkpoint.write(work / f"task_{last.task_id}", 1, meta, tensors)


# --- speed ---


def _speed(work: Path) -> None:
    _keys(work)
    run = work / "run.yaml"
    run.write_text(LARGE)
    _step("large", work)
    print("| 2 GB | seconds | peak MB |\n|---|--:|--:|")
    exported: dict[str, Path] = {}
    for name, more in (("plain", []), ("sealed", ["--to", "b"]), ("half", ["--half"])):
        exported[name] = work / name / f"{name}.relay"
        cost = _relay("export", work / "task_1", "--run", run, "--keys", work / "a", "--out", exported[name], *more)
        _say(f"export, {name}", exported[name], cost)
    _step("layout", work)
    for name, path in exported.items():
        out = work / "in" / name
        cost = _relay("import", path, "--run", run, "--site", 2, "--keys", work / "b", "--out", out)
        _say(f"import, {name}", path, cost)
        (out / "task_1/step-00000001.safetensors").unlink()
    for name in ("plain", "sealed"):
        _say(f"import, {name}, without torch", exported[name], _step("receive", work, exported[name], work / "bare" / name))
        (work / "bare" / name / "task_1/step-00000001.safetensors").unlink()
    _say("(torch and the layout alone)", None, _step("layout", work))


def _say(name: str, path: Path | None, cost: tuple[float, float]) -> None:
    size = f" ({path.stat().st_size / 1e9:.2f} GB)" if path else ""
    print(f"| {name}{size} | {cost[0]:.1f} | {cost[1]:.0f} |", flush=True)


def _make_large(work: Path) -> None:
    import torch

    from relay_core.config import load_run
    from relay_core.engine import checkpoint, hand_over_layout

    run = load_run(work / "run.yaml")
    site = run.site(1)
    types = {"F32": torch.float32, "I64": torch.int64}
    tensors = {
        name: torch.randn(shape) if dtype == "F32" else torch.ones(shape, dtype=types[dtype])
        for name, (dtype, shape) in hand_over_layout(site).items()
    }
    meta: dict[str, Any] = {
        "run": run.digest, "site": site.name, "task_id": 1, "strategy": "baseline", "consumed": 0, "images": 100, "steps": 1,
        "settings": site.shared(), "state": {}, "optimizers": {},
    }  # fmt: skip
    checkpoint.write(work / "task_1", 1, meta, tensors)


def _write_layout(work: Path) -> None:
    from relay_core.config import load_run
    from relay_core.engine import hand_over_layout

    (work / "layout.json").write_text(json.dumps(hand_over_layout(load_run(work / "run.yaml").site(1))))


def _receive(work: Path, path: Path, out: Path) -> None:
    """An import whose layout somebody else has computed."""
    from relay_core.bundle import KeyFolder, KnownRelays, import_bundle
    from relay_core.config import load_run

    layout = {name: (dtype, tuple(shape)) for name, (dtype, shape) in json.loads((work / "layout.json").read_text()).items()}
    run = load_run(work / "run.yaml")
    import_bundle(path, KnownRelays({run.digest: (run, 2)}, []), KeyFolder(work / "b"), out, lambda settings: layout)
    assert "torch" not in sys.modules


# --- half precision ---


def _half(work: Path, trained: Path, data: Path) -> None:
    _keys(work)
    run = trained / "run.yaml"
    print("| after | test set | Dice, float32 | Dice, half | difference |\n|---|---|--:|--:|--:|")
    parent: list[object] = []
    for folder in sorted(trained.glob("task_*")):
        scores = {}
        for name, more in (("full", []), ("half", ["--half"])):
            path = work / folder.name / name / "out.relay"
            _relay("export", folder, "--run", run, "--keys", work / "a", "--out", path, *parent, *more)
            _relay("import", path, "--run", run, "--keys", work / "b", "--out", path.parent / "in", "--evaluate")
            (imported,) = (path.parent / "in").glob("task_*")
            _relay("evaluate", imported, "--run", run, "--data-root", data, "--out", path.parent / "scored")
            scores[name] = json.loads((path.parent / "scored/scores.json").read_text())["scores"]
        for site, row in scores["full"].items():
            a, b = (scores[name][site]["dice_per_sample"] for name in ("full", "half"))
            assert row["dice_per_sample"] == a
            print(f"| {folder.name} | {site} | {a:.5f} | {b:.5f} | {b - a:+.5f} |", flush=True)
        parent = ["--parent", work / folder.name / "full/bundle/provenance.json"]


_STEPS = {"fundus": _make_fundus, "large": _make_large, "layout": _write_layout, "receive": _receive}


if __name__ == "__main__":
    main()
