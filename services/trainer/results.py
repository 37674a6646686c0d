"""Keep the results of a finished job: its files in the store, its rows in the database."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from relay_core.bundle import AUDIT
from relay_core.config import strategy_facts
from services.site import ArtifactStore, CheckpointFile, Refusal, artifacts, audit, bundle_exchange, need, registry
from services.site.db import Checkpoint, Dataset, Evaluation, Job, Run
from services.trainer.folder import newest_checkpoints
from services.trainer.training_process import NOTE
from services.trainer.work import PREDICTIONS, STAGED, PreparedJob

MEDIA_TYPES = {
    ".png": "image/png", ".json": "application/json", ".csv": "text/csv", ".md": "text/markdown; charset=utf-8",
    ".relay": bundle_exchange.MEDIA_TYPE, ".onnx": registry.MEDIA_TYPE, ".zip": "application/zip",
    ".gz": "application/gzip", ".dcm": "application/dicom",
}  # fmt: skip
"""Suffix -> media type of the files that are published; run files (.yaml) are not, as they name this machine's folders."""
CHECKPOINT = "application/vnd.safetensors"


@dataclass
class _Stored:
    """Lists the files of a finished job that are in the store, but that no row names yet."""

    checkpoints: list[tuple[CheckpointFile, str, int]]
    """(header, digest, size in bytes) of each new checkpoint, in the order of the sites."""
    files: dict[str, tuple[str, int, str]]
    """Path below the attempt's folder -> digest, size in bytes and media type of a file that is published."""


def store_results(store: ArtifactStore, work: PreparedJob) -> _Stored:
    """Put the files that a job wrote into the store.

    Raises:
        Refusal: `storage_full`; `checkpoint_invalid` where a training left fewer checkpoints than it trained sites.
    """
    inputs = [work.folder / name for name in work.inputs]
    wanted = "ready" if work.job.params.get("until") == "solver" else "finished"
    newest = [c for c in newest_checkpoints(work.folder) if c.path.parent not in inputs]
    newest = [] if work.job.kind == "privacy_audit" else newest  # what it trained for comparison is nobody's model
    new_checkpoints = [c for c in newest if c.finished or (wanted == "ready" and c.solver_ready)]
    if len(new_checkpoints) < work.sites:
        raise Refusal(
            "checkpoint_invalid", f"{work.sites} sites were trained, and {len(new_checkpoints)} left a {wanted} checkpoint"
        )
    unpublished_folders = [*inputs, work.folder / PREDICTIONS / STAGED]
    checkpoints = [(c, *store.put_file(c.path)) for c in new_checkpoints]
    published = [p for p in sorted(work.folder.rglob("*")) if p.parent not in unpublished_folders and p.name != NOTE]
    return _Stored(checkpoints, store_files(store, work.folder, published))


def store_files(store: ArtifactStore, folder: Path, paths: list[Path]) -> dict[str, tuple[str, int, str]]:
    """Put those of the files `paths` that have a media type into the store; return what `_Stored.files` has of them."""
    return {
        path.relative_to(folder).as_posix(): (*store.put_file(path), MEDIA_TYPES[path.suffix])
        for path in paths
        if path.suffix in MEDIA_TYPES and path.is_file()
    }


def attach_files(session: Session, job_id: str, files: dict[str, tuple[str, int, str]]) -> list[str]:
    """Attach stored files to their job; return the names that they have there."""
    for name, file in files.items():
        artifacts.attach(session, job_id, name.replace("/", "."), *file)
    return [name.replace("/", ".") for name in files]


def publish(session: Session, work: PreparedJob, stored: _Stored, last: dict[str, Any]) -> dict[str, Any]:
    """Write the rows of a finished job; return its result.

    Args:
        session: in the transaction that ends the job.
        work: the finished job.
        stored: the job's files, from `store_results`.
        last: the JSON of the process's last line that is no event: its own result.
    """
    job = work.job
    if job.kind in _PUBLISHERS:
        return _PUBLISHERS[job.kind](session, job, stored, last)
    checkpoint_ids = _publish_checkpoints(session, work, stored)
    result: dict[str, Any] = {"checkpoints": checkpoint_ids}
    matrices = {
        Path(name).stem: json.loads((work.folder / name).read_text())
        for name in stored.files
        if name.startswith("evaluation/") and name.endswith(".json")
    }
    if matrices:
        newest = checkpoint_ids[-1] if checkpoint_ids else job.checkpoint_id
        row = Evaluation(job_id=job.id, run_id=job.run_id, checkpoint_id=newest, matrices=matrices)
        session.add(row)
        session.flush()
        result["evaluation"] = row.id
        for name, (digest, size, media_type) in stored.files.items():
            if name.startswith("evaluation/"):
                artifacts.attach(session, row.id, name.removeprefix("evaluation/"), digest, size, media_type)
    others = {name: file for name, file in stored.files.items() if not name.startswith("evaluation/")}
    result["files"] = attach_files(session, job.id, others)
    if job.kind == "privacy_audit":
        summary = last["audit"]
        artifacts.attach(session, str(job.checkpoint_id), AUDIT, *stored.files[AUDIT])
        details = {"outcome": summary["outcome"], "reasons": summary["reasons"], "job": job.id}
        audit.record(session, job.created_by, "privacy_audit", str(job.checkpoint_id), **details)
        return {**result, **{key: summary[key] for key in ("outcome", "reasons")}}
    if job.kind == "predict_study":
        return {**result, "slices": last["slices"], "warnings": last["warnings"]}
    return {**result, **last} if job.kind == "predict" else result


def _publish_checkpoints(session: Session, work: PreparedJob, stored: _Stored) -> list[str]:
    checkpoint_ids: list[str] = []
    parent = work.base.id if work.base else None
    run = need(session, Run, work.job.run_id) if work.job.run_id is not None else None
    starts_anew = run is not None and strategy_facts(run.strategy).sequence == "anew"
    for file, digest, size in stored.checkpoints:
        if file.meta.get("holds_real_images"):
            raise Refusal(
                "real_images", f"the checkpoint of {file.meta['site']} holds images of patients: it is not kept here"
            )
        artifacts.keep(session, digest, size, CHECKPOINT)
        row = Checkpoint(
            run_id=work.job.run_id, job_id=work.job.id, parent_id=None if starts_anew else parent, digest=digest,
            task_id=int(file.meta["task_id"]), site=str(file.meta["site"]), step=int(file.meta["step"]),
            steps=int(file.meta["steps"]), content_digest=file.digest,
        )  # fmt: skip
        session.add(row)
        session.flush()
        audit.record(session, work.job.created_by, "checkpoint.publish", row.id, job=work.job.id, digest=digest)
        scores = stored.files.get((file.path.parent / "scores.json").relative_to(work.folder).as_posix())
        if scores is not None:
            artifacts.attach(session, row.id, "scores.json", *scores)
        checkpoint_ids.append(row.id)
        parent = row.id
    return checkpoint_ids


def _publish_preflight(session: Session, job: Job, stored: _Stored, last: dict[str, Any]) -> dict[str, Any]:
    row = need(session, Dataset, job.params["dataset"])
    row.report = {**last, "job": job.id}
    row.version += 1  # who has read it without this report, and changes it, is asked to look again
    artifacts.detach(session, row.id)
    for name, (digest, size, media_type) in stored.files.items():
        if name.startswith("previews/"):
            artifacts.attach(session, row.id, name.removeprefix("previews/"), digest, size, media_type)
    return last


def _publish_export(session: Session, job: Job, stored: _Stored, last: dict[str, Any]) -> dict[str, Any]:
    return {"bundle": bundle_exchange.built(session, job, last["bundle"], _files_by_name(stored)).id}


def _publish_import(session: Session, job: Job, stored: _Stored, last: dict[str, Any]) -> dict[str, Any]:
    ((_, digest, size),) = stored.checkpoints
    files = {**_files_by_name(stored), bundle_exchange.CHECKPOINT: (digest, size, CHECKPOINT)}
    return {"bundle": bundle_exchange.quarantine(session, job, last["bundle"], files).id}


def _publish_model(session: Session, job: Job, stored: _Stored, last: dict[str, Any]) -> dict[str, Any]:
    row = registry.publish(session, job, {"proof": last["proof"], "facts": last["facts"]}, stored.files[registry.FILE])
    return {"model": row.name, "version": row.version}


def _files_by_name(stored: _Stored) -> dict[str, tuple[str, int, str]]:
    """Return the files of a bundle by their bare names, whatever folder the core puts them into."""
    return {Path(name).name: file for name, file in stored.files.items()}


def _publish_report(session: Session, job: Job, stored: _Stored, last: dict[str, Any]) -> dict[str, Any]:
    row = need(session, Evaluation, job.params["evaluation"], hold=True)
    artifacts.attach(session, row.id, "report.json", *stored.files["report.json"])
    audit.record(session, job.created_by, "report.sign", row.id, digest=stored.files["report.json"][0])
    return {"report": row.id}


_PUBLISHERS = {
    "preflight": _publish_preflight, "export": _publish_export, "import": _publish_import, "report": _publish_report,
    "export_onnx": _publish_model,
}  # fmt: skip
