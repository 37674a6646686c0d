"""Checkpoints, scores and the proof of an export as text for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from relay_core.config import RunFile
from relay_core.cuda import backend
from relay_core.engine import Checkpoint, generated_rows, settings_of, write_picture
from relay_core.errors import CheckpointError
from relay_core.experiments import with_nearest
from relay_core.inference import SCORE
from relay_core.metrics import metrics_of, table_row, task_of


def scores_table(scores: dict[str, Any]) -> str:
    """Return a Markdown table: test sites x metrics, each with its unit, and with its 95 % interval (t) where it has one."""
    metrics = metrics_of(task_of(next(iter(scores.values()))))
    titles = [metric.title for metric in metrics]
    lines = [table_row(["test site", "images", *titles]), table_row(["---"] * (2 + len(metrics)))]
    for site, row in scores.items():
        cells = []
        for metric in metrics:
            cell = f"{metric.text(row[metric.name])} {metric.unit(row)}".rstrip()
            interval = row["ci95"].get(metric.name, {}).get("t")
            cells.append(cell + (f" ({metric.text(interval[0])} to {metric.text(interval[1])})" if interval else ""))
        lines.append(table_row([site, str(row["num_images"]), *cells]))
    return "\n".join(lines)


def proof_text(tests: dict[str, dict[str, Any]]) -> str:
    """Return one line on an export's proof: for each test set its score, beside the score in torch."""
    task, key = next((task, key) for task, key in SCORE.items() if all(key in row for row in tests.values()))
    scores = (f"{site} {row[key]:.3f} ({row[f'{key}_torch']:.3f} in torch)" for site, row in tests.items())
    return f"{metrics_of(task)[0].short} {', '.join(scores)}"


def draw_samples(
    checkpoint: Checkpoint, out: Path, per_site: int, device: torch.device, run: RunFile | None, data_root: Path | None
) -> None:
    """Write a grid of generated images and labels, a row for each site; with `run` the nearest training images below each.

    Raises:
        CheckpointError: the checkpoint has no generators.
        DataError: no site that it remembers is on this machine.
    """
    settings = settings_of(checkpoint)
    rows = generated_rows(settings, checkpoint, device, per_site)
    if not rows:
        raise CheckpointError(f"{checkpoint.path}: trained by {checkpoint.meta['strategy']}, which has no generators")
    if run is not None:
        rows = with_nearest(rows, checkpoint, run, data_root, device)
    write_picture(rows, out, settings.data.num_classes)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return JSON-able facts of a checkpoint, and with which ops its networks would run here."""
    meta, state = checkpoint.meta, checkpoint.meta["state"]
    networks = {}
    for name in checkpoint.networks:
        tensors = checkpoint.network(name).values()
        networks[name] = {
            "numbers": sum(t.numel() for t in tensors),
            "bytes": sum(t.numel() * t.element_size() for t in tensors),
        }
    return {
        "path": str(checkpoint.path),
        "digest": checkpoint.digest,
        "run": meta["run"],
        "site": meta["site"],
        "task_id": meta["task_id"],
        "strategy": meta["strategy"],
        "step": meta["step"],
        "images": meta["images"],
        "privacy": meta.get("privacy"),
        "stage": state.get("stage"),
        "sites_before": state.get("previous", {}),
        "augmentation_p": {k: state[k]["ada"]["p"] for k in ("label", "img") if k in state},
        "networks": networks,
        "bytes": checkpoint.path.stat().st_size,
        "settings": meta["settings"],
        "ops": backend("cuda" if torch.cuda.is_available() else "cpu"),
    }


def description_text(facts: dict[str, Any]) -> str:
    """Return the facts that `describe` gave as text for a person."""
    lines = [
        f"{facts['path']} ({facts['bytes'] / 2**20:.1f} MiB), digest verified",
        f"digest    {facts['digest']}",
        f"run       {facts['run']}",
        f"site      {facts['site']} (task {facts['task_id']}), {facts['images']} images, step {facts['step']}",
        f"strategy  {facts['strategy']}" + (f", stage {facts['stage']}" if facts["stage"] else ""),
    ]
    if facts["privacy"] is not None:
        spent = facts["privacy"]
        lines.append(
            f"privacy   epsilon {spent['epsilon']:g} at delta {spent['delta']:g} for each of {spent['units']} "
            f"{spent['unit']}s (an experiment)"
        )
    before = ", ".join(
        f"{name} (slot {slot['id']}, {slot['frequency']} images)" for name, slot in facts["sites_before"].items()
    )
    lines.append(f"before    {before or 'no site'}")
    lines += [f"network   {name:14} {n['numbers']:>12,} numbers" for name, n in facts["networks"].items()]
    lines.append(f"ops here  {facts['ops']}")
    return "\n".join(lines)
