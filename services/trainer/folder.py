"""A job's folder: one below it for each attempt, so that a worker that comes back too late writes beside, not over."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from relay_core.config import RunFile
from services.site import CheckpointFile, Claim, LeaseLost, read_header
from services.trainer.training_process import NOTE, end_leftover

_NOT_CARRIED = frozenset({NOTE, "events.jsonl"})


def attempt_folder(work: Path, claim: Claim) -> Path:
    """Make an attempt's folder, holding what the attempts before it finished writing; end what they left running.

    Raises:
        LeaseLost: a later attempt is at work already.
    """
    job = work / claim.job_id
    target, draft = job / f"attempt-{claim.attempt}", job / f"new-{claim.attempt}"
    before = sorted(job.glob("attempt-*"), key=_number)
    if before and _number(before[-1]) >= claim.attempt:
        raise LeaseLost(claim)
    for old in before:
        end_leftover(old)
    for stale in job.glob("new-*"):
        shutil.rmtree(stale, ignore_errors=True)
    draft.mkdir(parents=True)
    if before:
        _carry(before[-1], draft)
    draft.rename(target)
    for old in before:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _number(attempt: Path) -> int:
    return int(attempt.name.removeprefix("attempt-"))


def _carry(old: Path, new: Path) -> None:
    """Take over files: checkpoints by a second link (they are only ever replaced, never written into)."""
    for path in sorted(old.rglob("*")):
        target = new / path.relative_to(old)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif path.name not in _NOT_CARRIED and not path.name.startswith(".writing-"):
            with contextlib.suppress(FileNotFoundError):  # the engine drops old checkpoints
                target.parent.mkdir(parents=True, exist_ok=True)
                if path.suffix == ".safetensors":
                    os.link(path, target)
                else:
                    shutil.copy2(path, target)


def write_run_files(folder: Path, run: RunFile, folders: Mapping[int, Path]) -> Path:
    """Write the relay's run file, and beside it this machine's: where the images of each site lie. Return the latter."""
    (folder / "relay.yaml").write_text(run.canonical(), encoding="utf-8")
    places = {task_id: {"dataset": {"kwargs": {"img_folder": str(path)}}} for task_id, path in folders.items()}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({"extends": "relay.yaml", "current_tasks": {"task_confs": places}}), encoding="utf-8")
    return path


def newest_checkpoints(folder: Path) -> list[CheckpointFile]:
    """The newest checkpoint of each site that was trained below `folder`, in the order of their ids."""
    newest = {path.parent: path for path in sorted(folder.rglob("step-*.safetensors"))}
    return sorted(map(read_header, newest.values()), key=lambda checkpoint: int(checkpoint.meta["task_id"]))
