"""What a bundle costs: its size beside the checkpoint, time and memory for 2 GB, and what half precision does to the scores.

    python -m benchmarks.bundle size
    python -m benchmarks.bundle speed --work /tmp
    python -m benchmarks.bundle half --trained demo/relay --data demo/phantoms

In `speed` each step runs in a process of its own; its peak memory is what the kernel counted for it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import trained
from benchmarks.record import Record, script
from relay_core.bundle import KeyFolder, KnownRelays, Provenance, export_bundle, import_bundle
from relay_core.config import load_run

if TYPE_CHECKING:
    from relay_core.engine import Checkpoint

LARGE = """
common:
  dataset: {name: fundus, kwargs: {img_size: 256}}
  strategy: {name: baseline}
  model: {name: U-Net, kwargs: {backbone: plain, base_channels: %d}}
  train: {num_mimgs: 16e-6, batch_size: 16, loss: {name: explog}}
all_tasks_datasets:
- kwargs: {task_id: 1, task_name: A, img_folder: A}
- kwargs: {task_id: 2, task_name: B, img_folder: B}
current_tasks: {task_ids: [1, 2]}
"""
"""Networks of 2 GB in single precision, at 256 feature maps."""
CHECKPOINT = "task_1/step-00000001.safetensors"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("part", nargs="?", choices=["size", "speed", "half"], default="size")
    trained.arguments(parser)  # of the relay that `half` trains; --set: also over recipe fundus in `size`
    parser.add_argument("--width", type=int, default=256, help="speed: feature maps of the U-Net")
    parser.add_argument("--forms", nargs="+", choices=["plain", "sealed", "half"], default=["plain", "sealed", "half"])
    parser.add_argument("--work", type=Path, help="where the files go meanwhile; `speed` needs 15 GB")
    parser.add_argument(
        "--trained", type=Path, help="half: a trained relay with its run.yaml; default: trained now, briefly"
    )
    parser.add_argument("--data", type=Path, default=Path("demo/phantoms"), help="half: its data")


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill the table of one part."""
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        folder = Path(work)
        acquainted(folder)
        {"size": size, "speed": speed, "half": half}[args.part](folder, args, record)


def acquainted(folder: Path) -> tuple[KeyFolder, KeyFolder]:
    """Make the keys of a sender and of a receiver that trust each other, `folder/a` and `folder/b`."""
    sender, receiver = (KeyFolder(folder / name) for name in "ab")
    for keys in (sender, receiver):
        keys.create(keys.folder.name, keys.keep_passphrase())
    for keys, other in ((sender, receiver), (receiver, sender)):
        roster = keys.roster
        roster.trust(other.card)
        keys.save(roster)
    return sender, receiver


# --- size ---


def size(work: Path, args: argparse.Namespace, record: Record) -> None:
    """Megabytes of a bundle, of untrained checkpoints as the first two sites leave them."""
    (work / "run.yaml").write_text(load_run("fundus", args.set).canonical())
    run, keys = load_run(work / "run.yaml"), KeyFolder(work / "a")
    first, second = _untrained(work, 2)
    export_bundle(first, run, keys, work / "one/one.relay")
    parent = Provenance.read(work / "one/bundle/provenance.json")
    table = record.table("Size of a bundle", {"recipe fundus, second site": "", "MB": ".1f", "of the checkpoint": ".1%"})
    full = second.stat().st_size
    table.add("training checkpoint", full / 1e6, None)
    for name, narrow in (("bundle, float32", False), ("bundle, --half", True)):
        made = export_bundle(second, run, keys, work / "two.relay", parent=parent, half=narrow).size
        table.add(name, made / 1e6, made / full)


def _untrained(work: Path, sites: int) -> list[Path]:
    """Checkpoints as the first sites leave them, untrained: every tensor is there, optimizers' included."""
    import torch

    from relay_core.engine import checkpoint
    from relay_core.strategies import make_strategy

    run, cpu, written = load_run(work / "run.yaml"), torch.device("cpu"), []
    for count in range(1, sites + 1):
        settings = [run.site(i) for i in run.task_ids[:count]]
        last = settings[-1]
        strategy = make_strategy(last.without_pretraining(), cpu)
        for one in settings:
            strategy.begin_site(one.name, 100)
        for name in ("old_D_label", "old_D_img"):  # they end with the first stage
            strategy.networks.pop(name, None)
        for updater in strategy.updaters.values():
            for parameter in updater.parameters:
                parameter.grad = torch.zeros_like(parameter)
            updater.optimizer.step()
            for parameter in updater.parameters:
                parameter.grad = None
        state, tensors = checkpoint.collect(strategy, cpu)
        meta = {
            "run": run.digest, "site": last.name, "task_id": last.task_id, "strategy": strategy.name, "consumed": 0,
            "images": 100, "steps": 1, "settings": last.shared(), **state,
        }  # fmt: skip
        written.append(checkpoint.write(work / f"task_{last.task_id}", 1, meta, tensors).path)
    return written


# --- speed ---


def speed(work: Path, args: argparse.Namespace, record: Record) -> None:
    """Seconds and memory of export and import, each in a process of its own."""
    run = work / "run.yaml"
    run.write_text(LARGE % args.width)
    step = _here if args.toy else _step
    step("large", work)
    table = record.table("Time and memory of a bundle", {"step": "", "GB": ".2f", "seconds": ".1f", "peak MB": ".0f"})
    options = {"plain": [], "sealed": ["--to", "b"], "half": ["--half"]}
    exported = {form: work / form / f"{form}.relay" for form in args.forms}
    for form, path in exported.items():
        cost = _relay("export", work / "task_1", "--run", run, "--keys", work / "a", "--out", path, *options[form])
        table.add(f"export, {form}", path.stat().st_size / 1e9, *cost)
    layout = step("layout", work)
    for form, path in exported.items():
        out = work / "in" / form
        cost = _relay("import", path, "--run", run, "--site", 2, "--keys", work / "b", "--out", out)
        table.add(f"import, {form}", path.stat().st_size / 1e9, *cost)
        (out / CHECKPOINT).unlink()
    for form in (one for one in ("plain", "sealed") if one in exported):
        cost = _step("receive", work, exported[form], work / "bare" / form)
        table.add(f"import, {form}, without torch", exported[form].stat().st_size / 1e9, *cost)
        (work / "bare" / form / CHECKPOINT).unlink()
    table.add("(torch and the layout alone)", None, *layout)


def _run(*command: object) -> tuple[float, float]:
    """Seconds and peak MB of a command; this process is small, since a child's peak begins with its parent's."""
    begin = time.monotonic()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        sys.exit(f"failed: {' '.join(map(str, command))}")
    return time.monotonic() - begin, usage.ru_maxrss / 1e3


def _relay(*arguments: object) -> tuple[float, float]:
    return _run(sys.executable, "-m", "relay_core", *arguments)


def _step(name: str, *arguments: object) -> tuple[float, float]:
    return _run(sys.executable, "-m", "benchmarks.bundle", STEP, name, *arguments)


def _here(name: str, *arguments: Path) -> tuple[float, float]:
    """The same in this process, which spares a toy the start."""
    begin = time.monotonic()
    STEPS[name](*arguments)
    return time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _make_large(work: Path) -> None:
    import torch

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
    from relay_core.engine import hand_over_layout

    (work / "layout.json").write_text(json.dumps(hand_over_layout(load_run(work / "run.yaml").site(1))))


def _receive(work: Path, path: Path, out: Path) -> None:
    """An import whose layout somebody else has computed."""
    layout = {name: (dtype, tuple(shape)) for name, (dtype, shape) in json.loads((work / "layout.json").read_text()).items()}
    run = load_run(work / "run.yaml")
    import_bundle(path, KnownRelays({run.digest: (run, 2)}, []), KeyFolder(work / "b"), out, lambda settings: layout)
    assert "torch" not in sys.modules


STEP, STEPS = "step", {"large": _make_large, "layout": _write_layout, "receive": _receive}
"""What runs in a process of its own: `python -m benchmarks.bundle step NAME FOLDER...`."""


# --- half precision ---


def half(work: Path, args: argparse.Namespace, record: Record) -> None:
    """Dice of the checkpoints that bundles of either precision become, on every test set."""
    relay, data = (args.trained, args.data) if args.trained else trained.short_relay(work, args)
    run, parent = load_run(relay / "run.yaml"), None
    heads = {"after": "", "test set": "", "Dice, float32": ".5f", "Dice, half": ".5f", "difference": "+.5f"}
    table = record.table("What half precision costs", heads)
    for folder in sorted(relay.glob("task_*")):
        (newest,) = sorted(folder.glob("step-*.safetensors"))[-1:]
        scores = {}
        for name, narrow in (("full", False), ("half", True)):
            path = work / folder.name / name / "out.relay"
            export_bundle(newest, run, KeyFolder(work / "a"), path, parent=parent, half=narrow)
            scores[name] = _dice(_imported(path, run, KeyFolder(work / "b")), run, data)
        before = json.loads((folder / "scores.json").read_text())["scores"]
        for site, full in scores["full"].items():
            assert before[site]["dice_per_sample"] == full, "a bundle in full precision is the checkpoint"
            table.add(folder.name, site, full, scores["half"][site], scores["half"][site] - full)
        parent = Provenance.read(work / folder.name / "full/bundle/provenance.json")


def _imported(path: Path, run: Any, keys: KeyFolder) -> Checkpoint:
    from relay_core.engine import checkpoint, hand_over_layout

    known = KnownRelays({run.digest: (run, None)}, [])
    return checkpoint.find(import_bundle(path, known, keys, path.parent / "in", hand_over_layout, evaluate=True)[1], print)


def _dice(found: Checkpoint, run: Any, data: Path) -> dict[str, float]:
    import torch

    from relay_core.engine import evaluate_checkpoint

    scores, _ = evaluate_checkpoint(found, run, data, torch.device("cpu"), None)
    return {site: row["dice_per_sample"] for site, row in scores.items()}


_measured = script(__doc__, arguments, measure, toy={**trained.TOY_RELAY, "forms": ["plain"], "width": 4})


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure; or run one step of `speed`."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == [STEP]:
        STEPS[given[1]](*map(Path, given[2:]))
        return {}
    return _measured(given)


if __name__ == "__main__":
    main()
