"""What each kind of job runs, and what of it is published."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from services.site import artifacts, audit, folders
from services.site.artifacts import ArtifactStore
from services.site.db.engine import Database
from services.site.db.models import Checkpoint, Dataset, Evaluation, Job, Run
from services.site.errors import Refusal
from services.site.leases import Claim
from services.site.plan import need
from services.site.runs import run_file
from services.site.settings import Settings
from services.trainer.child import NOTE
from services.trainer.folder import CheckpointFile, newest_checkpoints, write_run_files

MEDIA_TYPES = {".png": "image/png", ".json": "application/json", ".csv": "text/csv"}
"""Suffixes of files that are published; run files name folders of this machine and are not."""
CHECKPOINT = "application/vnd.safetensors"
INPUT = "input"
"""Folder below an attempt's that holds the checkpoint of an evaluation."""


@dataclass
class Work:
    """A job made ready to run in `folder`."""

    job: Job
    folder: Path
    command: list[str]
    inputs: dict[str, str] = field(default_factory=dict)
    """Folder of a checkpoint that was put there -> its row's id: not this job's own."""
    base: Checkpoint | None = None
    sites: int = 0
    """Sites that it trains: as many checkpoints it leaves."""
    wanted: list[tuple[str, Path]] = field(default_factory=list)
    """Digests of stored bytes, and where they are needed."""


def environment(devices: tuple[str, ...]) -> dict[str, str]:
    """Variables of the training process: ours without the service's settings and secrets, and its devices."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_") or name == "RELAY_OPS"}
    kept |= {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    gpus = [int(device.partition(":")[2]) for device in devices if device.startswith("cuda:")]
    if len(gpus) > 1:
        visible = [name for name in kept.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(visible[i] if visible else str(i) for i in gpus)
    return kept


def prepare(database: Database, store: ArtifactStore, settings: Settings, claim: Claim, folder: Path) -> Work:
    """Put everything that a claimed job needs into its folder.

    Raises:
        Refusal: a row, a folder or stored bytes that it needs are gone.
    """
    with database.read() as session:
        job = need(session, Job, claim.job_id)
        maker = {"train": _train, "evaluate": _evaluate, "samples": _samples, "preflight": _preflight}[job.kind]
        work = Work(job, folder, [])
        maker(session, settings, claim, work)
    for digest, target in work.wanted:
        store.fetch(digest, target)
    return work


def _core(claim: Claim, *arguments: str) -> list[str]:
    """The core's command line, on the claimed devices."""
    many = len(claim.devices) > 1
    device = ("cuda" if many else claim.devices[0]) if claim.devices else None
    core = ["-m", "relay_core", *arguments, *(["--device", device] if device else []), "--json"]
    if not many:
        return [sys.executable, *core]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(claim.devices)}"]
    return [*launcher, "--no-python", sys.executable, "-m", "services.trainer.leash", "0", sys.executable, *core]


def _image_folders(session: Session, settings: Settings, params: Mapping[str, Any]) -> dict[int, Path]:
    rows = {int(task_id): need(session, Dataset, row_id) for task_id, row_id in params["datasets"].items()}
    return {task_id: folders.inside(settings.data_folder, row.path) for task_id, row in rows.items()}


def _train(session: Session, settings: Settings, claim: Claim, work: Work) -> None:
    job, folder = work.job, work.folder
    run = run_file(need(session, Run, str(job.run_id)))
    file = write_run_files(folder, run, _image_folders(session, settings, job.params))
    site = job.params["site"]
    work.sites = 1 if site is not None or run.sites()[0].mode == "joint" else len(run.task_ids)
    if job.checkpoint_id is not None:
        work.base = need(session, Checkpoint, job.checkpoint_id)
        _place_history(session, work, work.base, {i: run.site(i).folder_name for i in run.all_ids})
    only = ["--site", str(site)] if site is not None else []
    work.command = _core(claim, "train", str(file), *only, "--out", str(folder), "--resume")


def _place_history(session: Session, work: Work, base: Checkpoint, folder_names: Mapping[int, str]) -> None:
    """The checkpoint to start from where the engine looks for it, and the scores of the sites before, for the matrix."""
    name = folder_names[base.task_id]
    target = work.folder / name / f"step-{base.step:08d}.safetensors"
    work.wanted.append((base.digest, target))
    row: Checkpoint | None = base
    while row is not None:
        name = folder_names[row.task_id]
        work.inputs[name] = row.id
        scores = artifacts.attached(session, row.id).get("scores.json")
        if scores is not None:
            work.wanted.append((scores.digest, work.folder / name / "scores.json"))
        row = session.get(Checkpoint, row.parent_id) if row.parent_id else None


def _input_checkpoint(session: Session, work: Work) -> Path:
    row = need(session, Checkpoint, str(work.job.checkpoint_id))
    path = work.folder / INPUT / f"step-{row.step:08d}.safetensors"
    work.wanted.append((row.digest, path))
    work.inputs[INPUT] = row.id
    return path


def _evaluate(session: Session, settings: Settings, claim: Claim, work: Work) -> None:
    checkpoint = _input_checkpoint(session, work)
    run = run_file(need(session, Run, str(work.job.run_id)))
    file = write_run_files(work.folder, run, _image_folders(session, settings, work.job.params))
    work.command = _core(claim, "evaluate", str(checkpoint), "--run", str(file), "--out", str(work.folder))


def _samples(session: Session, settings: Settings, claim: Claim, work: Work) -> None:
    checkpoint = _input_checkpoint(session, work)
    count = str(work.job.params["per_site"])
    out = str(work.folder / "samples.png")
    work.command = _core(claim, "samples", str(checkpoint), "--per-site", count, "--out", out)


def _preflight(session: Session, settings: Settings, claim: Claim, work: Work) -> None:
    row = need(session, Dataset, work.job.params["dataset"])
    path = folders.inside(settings.data_folder, row.path)
    work.command = _core(
        claim, "preflight", row.layout, str(path), "--options", json.dumps(row.options),
        "--previews", str(work.folder / "previews"), "--count", str(work.job.params["previews"]),
    )  # fmt: skip


@dataclass
class _Stored:
    """Bytes of a finished job, in the store and not yet named by a row."""

    checkpoints: list[tuple[CheckpointFile, str, int]]
    files: dict[str, tuple[str, int, str]]
    """Name below the attempt's folder -> digest, size, media type."""


def store_results(store: ArtifactStore, work: Work) -> _Stored:
    """Put what a job wrote into the store.

    Raises:
        Refusal: `storage_full`; `checkpoint_invalid` where a training left fewer checkpoints than it trained sites.
    """
    inputs = [work.folder / name for name in work.inputs]
    own = [c for c in newest_checkpoints(work.folder) if c.finished and c.path.parent not in inputs]
    if len(own) < work.sites:
        raise Refusal("checkpoint_invalid", f"{work.sites} sites were trained, and {len(own)} left a finished checkpoint")
    stored = _Stored([(c, *store.put_file(c.path)) for c in own], {})
    for path in sorted(work.folder.rglob("*")):
        if path.suffix in MEDIA_TYPES and path.is_file() and path.parent not in inputs and path.name != NOTE:
            inside = path.relative_to(work.folder).as_posix()
            stored.files[inside] = (*store.put_file(path), MEDIA_TYPES[path.suffix])
    return stored


def publish(session: Session, work: Work, stored: _Stored, last: dict[str, Any]) -> dict[str, Any]:
    """Write the rows of a finished job; return its result.

    Args:
        session: in the transaction that ends the job.
        work: the job.
        stored: from `store_results`.
        last: the last line of the process.
    """
    job = work.job
    if job.kind == "preflight":
        return _publish_preflight(session, job, stored, last)
    made = _publish_checkpoints(session, work, stored)
    result: dict[str, Any] = {"checkpoints": made, "files": []}
    matrices = {
        Path(name).stem: json.loads((work.folder / name).read_text())
        for name in stored.files
        if name.startswith("evaluation/") and name.endswith(".json")
    }
    if matrices:
        newest = made[-1] if made else job.checkpoint_id
        row = Evaluation(job_id=job.id, run_id=job.run_id, checkpoint_id=newest, matrices=matrices)
        session.add(row)
        session.flush()
        result["evaluation"] = row.id
        for name, (digest, size, media_type) in stored.files.items():
            if name.startswith("evaluation/"):
                artifacts.attach(session, row.id, name.removeprefix("evaluation/"), digest, size, media_type)
    for name, (digest, size, media_type) in stored.files.items():
        if not name.startswith("evaluation/"):
            result["files"].append(name.replace("/", "."))
            artifacts.attach(session, job.id, name.replace("/", "."), digest, size, media_type)
    return result


def _publish_checkpoints(session: Session, work: Work, stored: _Stored) -> list[str]:
    made: list[str] = []
    parent = work.base.id if work.base else None
    local = work.job.run_id is not None and need(session, Run, work.job.run_id).strategy == "local"
    for file, digest, size in stored.checkpoints:
        artifacts.keep(session, digest, size, CHECKPOINT)
        row = Checkpoint(
            run_id=work.job.run_id, job_id=work.job.id, parent_id=None if local else parent, digest=digest,
            task_id=int(file.meta["task_id"]), site=str(file.meta["site"]), step=int(file.meta["step"]),
            content_digest=file.digest,
        )  # fmt: skip
        session.add(row)
        session.flush()
        audit.record(session, work.job.created_by, "checkpoint.publish", row.id, job=work.job.id, digest=digest)
        scores = stored.files.get((file.path.parent / "scores.json").relative_to(work.folder).as_posix())
        if scores is not None:
            artifacts.attach(session, row.id, "scores.json", *scores)
        made.append(row.id)
        parent = row.id
    return made


def _publish_preflight(session: Session, job: Job, stored: _Stored, last: dict[str, Any]) -> dict[str, Any]:
    row = need(session, Dataset, job.params["dataset"])
    row.report = {**last, "job": job.id}
    artifacts.detach(session, row.id)
    for name, (digest, size, media_type) in stored.files.items():
        if name.startswith("previews/"):
            artifacts.attach(session, row.id, name.removeprefix("previews/"), digest, size, media_type)
    return last
