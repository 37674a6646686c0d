"""Lay out a job's folder: each attempt has a folder of its own, so that a worker that comes back late overwrites nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from relay_core.config import RunFile
from services.site import CheckpointFile, Claim, LeaseLost, read_header
from services.trainer.training_process import NOTE, end_leftover

_NOT_CARRIED = frozenset({NOTE, "events.jsonl"})


def attempt_folder(work: Path, claim: Claim) -> Path:
    """Make an attempt's folder with the finished files of the attempts before it, and end processes that they left running.

    Raises:
        LeaseLost: a later attempt is at work already.
    """
    job_folder = work / claim.job_id
    target, draft = job_folder / f"attempt-{claim.attempt}", job_folder / f"new-{claim.attempt}"
    earlier = sorted(job_folder.glob("attempt-*"), key=_attempt_number)
    if earlier and _attempt_number(earlier[-1]) >= claim.attempt:
        raise LeaseLost(claim)
    for old in earlier:
        end_leftover(old)
    for stale in job_folder.glob("new-*"):
        shutil.rmtree(stale, ignore_errors=True)
    draft.mkdir(parents=True)
    if earlier:
        _carry_over(earlier[-1], draft)
    draft.rename(target)
    for old in earlier:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _attempt_number(attempt: Path) -> int:
    return int(attempt.name.removeprefix("attempt-"))


def _carry_over(source: Path, destination: Path) -> None:
    """Copy an attempt's files; a checkpoint gets a second link instead, as it may be replaced but is never written into."""
    for path in sorted(source.rglob("*")):
        target = destination / path.relative_to(source)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif path.name not in _NOT_CARRIED and not path.name.startswith(".writing-"):
            with contextlib.suppress(FileNotFoundError):  # the engine may delete an old checkpoint at the same time
                target.parent.mkdir(parents=True, exist_ok=True)
                if path.suffix == ".safetensors":
                    os.link(path, target)
                else:
                    shutil.copy2(path, target)


def write_run_files(
    folder: Path, run: RunFile, folders: Mapping[int, Path], checkpoints: Mapping[int, Mapping[str, Any]] | None = None
) -> Path:
    """Write the relay's run file, and one that extends it by this site's own settings; return the latter's path.

    Args:
        folder: the folder to write to.
        run: the run file.
        folders: task_id -> image folder.
        checkpoints: task_id -> settings below `checkpoint`.
    """
    (folder / "relay.yaml").write_text(run.canonical(), encoding="utf-8")
    task_confs: dict[int, dict[str, Any]] = {
        task_id: {"dataset": {"kwargs": {"img_folder": str(path)}}} for task_id, path in folders.items()
    }
    for task_id, settings in (checkpoints or {}).items():
        task_confs[task_id]["checkpoint"] = dict(settings)
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({"extends": "relay.yaml", "current_tasks": {"task_confs": task_confs}}), encoding="utf-8")
    return path


def newest_checkpoints(folder: Path) -> list[CheckpointFile]:
    """Return the newest checkpoint of each site that was trained below `folder`, in the order of the sites' ids."""
    newest = {path.parent: path for path in sorted(folder.rglob("step-*.safetensors"))}
    return sorted(map(read_header, newest.values()), key=lambda checkpoint: int(checkpoint.meta["task_id"]))
