"""What each kind of job runs, and with which files."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.site import (
    ArtifactStore,
    Claim,
    Refusal,
    Settings,
    artifacts,
    bundle_exchange,
    folders,
    need,
    registry,
    run_file,
)
from services.site.db import Bundle, Checkpoint, Database, Dataset, Job, Run
from services.trainer.folder import write_run_files

INPUT = "input"
"""Folder below an attempt's that holds what a job looks at: it is not the job's own."""
PREDICTIONS = "predictions"
"""Folder below an attempt's that predictions go to; single masks in it are not published, their archive is."""
STAGED = "masks"
"""Their folder there."""
_ANEW = ("export", "import", "report", "export_onnx")
"""Jobs that begin anew: what an attempt before left may be half of it."""
KEY_VARIABLES = ("RELAY_KEY_PASSPHRASE", "RELAY_KEY_PASSPHRASE_FILE")


@dataclass
class PreparedJob:
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
    keys: Path | None = None
    """Folder of the keys that it signs with, or checks signatures with."""
    names: dict[str, str] = field(default_factory=dict)
    """What its messages may hold, and what people read instead."""


CORE_VARIABLES = ("RELAY_OPS", "RELAY_PLUGINS", "RELAY_PRETRAINED")
"""Of the core: which ops it uses, which modules a run file may name, where ImageNet weights lie."""


def environment(devices: tuple[str, ...], keys: Path | None = None) -> dict[str, str]:
    """Variables of a job's process: ours without the service's settings and secrets, and its devices.

    Args:
        devices: that it may use.
        keys: the folder of keys, for a job that needs it; such a job is told their passphrase too.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_") or name in CORE_VARIABLES}
    kept |= {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    if keys is not None:
        kept |= {name: os.environ[name] for name in KEY_VARIABLES if name in os.environ}
        kept["RELAY_KEYS"] = str(keys)
    gpus = [int(device.partition(":")[2]) for device in devices if device.startswith("cuda:")]
    if len(gpus) > 1:
        visible = [name for name in kept.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(visible[i] if visible else str(i) for i in gpus)
    return kept


def prepare(database: Database, store: ArtifactStore, settings: Settings, claim: Claim, folder: Path) -> PreparedJob:
    """Put everything that a claimed job needs into its folder.

    Raises:
        Refusal: a row, a folder or stored bytes that it needs are gone.
    """
    with database.read() as session:
        job = need(session, Job, claim.job_id)
        work = PreparedJob(job, folder, [])
        if job.kind in _ANEW:
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        _MAKERS[job.kind](session, settings, claim, work)
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
    return [*launcher, "--no-python", sys.executable, "-m", "services.trainer.process_guard", "0", sys.executable, *core]


def _image_folders(session: Session, settings: Settings, params: Mapping[str, Any]) -> dict[int, Path]:
    rows = {int(task_id): need(session, Dataset, row_id) for task_id, row_id in params["datasets"].items()}
    return {task_id: folders.inside(settings.data_folder, row.path) for task_id, row in rows.items()}


def _train(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    job, folder = work.job, work.folder
    run = run_file(need(session, Run, str(job.run_id)))
    file = write_run_files(folder, run, _image_folders(session, settings, job.params))
    site = job.params["site"]
    work.sites = 1 if site is not None or run.sites()[0].facts.sequence == "at_once" else len(run.task_ids)
    if job.checkpoint_id is not None:
        work.base = need(session, Checkpoint, job.checkpoint_id)
        _place_history(session, work, work.base, {i: run.site(i).folder_name for i in run.all_ids})
    only = ["--site", str(site)] if site is not None else []
    work.command = _core(claim, "train", str(file), *only, "--out", str(folder), "--resume")


def _place_history(session: Session, work: PreparedJob, base: Checkpoint, folder_names: Mapping[int, str]) -> None:
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


def _input_checkpoint(session: Session, work: PreparedJob) -> Path:
    row = need(session, Checkpoint, str(work.job.checkpoint_id))
    path = work.folder / INPUT / f"step-{row.step:08d}.safetensors"
    work.wanted.append((row.digest, path))
    work.inputs[INPUT] = row.id
    return path


def _evaluate(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    checkpoint = _input_checkpoint(session, work)
    run = run_file(need(session, Run, str(work.job.run_id)))
    file = write_run_files(work.folder, run, _image_folders(session, settings, work.job.params))
    work.command = _core(claim, "evaluate", str(checkpoint), "--run", str(file), "--out", str(work.folder))


def _samples(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    checkpoint = _input_checkpoint(session, work)
    count = str(work.job.params["per_site"])
    out = str(work.folder / "samples.png")
    work.command = _core(claim, "samples", str(checkpoint), "--per-site", count, "--out", out)


def _export_onnx(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    checkpoint = _input_checkpoint(session, work)
    run = run_file(need(session, Run, str(work.job.run_id)))
    file = write_run_files(work.folder, run, _image_folders(session, settings, work.job.params))
    wanted = ["--precision", work.job.params["precision"], "--out", str(work.folder / registry.FILE)]
    work.command = _core(claim, "export-onnx", str(checkpoint), "--run", str(file), *wanted)


def _predict(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    checkpoint = _input_checkpoint(session, work)
    row = need(session, Dataset, work.job.params["dataset"])
    path = folders.inside(settings.data_folder, row.path)
    options = ["--options", json.dumps(row.options), "--out", str(work.folder / PREDICTIONS)]
    work.command = _core(claim, "predict-dataset", str(checkpoint), row.layout, str(path), *options)


def _preflight(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    row = need(session, Dataset, work.job.params["dataset"])
    path = folders.inside(settings.data_folder, row.path)
    work.command = _core(
        claim, "preflight", row.layout, str(path), "--options", json.dumps(row.options),
        "--previews", str(work.folder / "previews"), "--count", str(work.job.params["previews"]),
    )  # fmt: skip


def _export(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    params, file = work.job.params, str(work.folder / bundle_exchange.FILE)
    checkpoint = _input_checkpoint(session, work)
    work.command = _core(claim, "export", str(checkpoint), *_run_and_keys(session, settings, work), "--out", file)
    _option(work, "--scores", artifacts.attached(session, work.inputs[INPUT]).get("scores.json"), "scores.json")
    if params["parent"] is not None:
        before = artifacts.attached(session, params["parent"]).get("provenance.json")
        if before is None:
            raise Refusal("bundle_incomplete", f"{params['parent']} has lost its provenance.json; export that hop again")
        _option(work, "--parent", before, "provenance.json")
    if params["recipient"] is not None:
        work.command += [f"--to={params['recipient']}"]  # in one word: a name may begin with a dash
    if params["half"]:
        work.command += ["--half"]


def _import(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    row = need(session, Bundle, work.job.params["import"])
    file = ArtifactStore(settings.artifact_folder).path(row.digest)
    try:
        os.utime(file)  # a refused one is swept a day after it was let go: while it is verified again it stays
    except FileNotFoundError:
        raise Refusal("artifact_damaged", f"the file of {row.id} is no longer in the store; bring it again") from None
    work.names |= {str(file): row.id, file.name: row.id}
    work.inputs[INPUT], work.keys = row.id, settings.keys_folder
    (work.folder / INPUT).mkdir(exist_ok=True)
    runs = []
    for run in session.scalars(select(Run).order_by(Run.id)):
        path = work.folder / INPUT / f"{run.id}.yaml"
        path.write_text(run.content, encoding="utf-8")
        runs.append({"file": str(path), "site": run.site})
    known = {"runs": runs, "imported": bundle_exchange.imported(session, str(row.purpose))}
    path = work.folder / INPUT / "known.json"
    path.write_text(json.dumps(known), encoding="utf-8")
    scoring = ["--evaluate"] if row.purpose == "evaluate" else []
    keys = ["--keys", str(settings.keys_folder)]
    out = ["--out", str(work.folder)]
    work.command = _core(claim, "import", str(file), "--known", str(path), *keys, *out, *scoring)


def _report(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    checkpoint, scores = _input_checkpoint(session, work), work.folder / INPUT / "scores.json"
    found = artifacts.attached(session, work.job.params["scores"]).get("scores.json")
    if found is None:
        raise Refusal("bundle_incomplete", f"{work.job.params['scores']} has lost its scores.json")
    work.wanted.append((found.digest, scores))
    where = ["--checkpoint", str(checkpoint), "--out", str(work.folder / "report.json")]
    work.command = _core(claim, "report", "sign", str(scores), *_run_and_keys(session, settings, work), *where)


def _run_and_keys(session: Session, settings: Settings, work: PreparedJob) -> list[str]:
    work.keys = settings.keys_folder
    path = work.folder / "relay.yaml"
    path.write_text(need(session, Run, str(work.job.run_id)).content, encoding="utf-8")
    return ["--run", str(path), "--keys", str(settings.keys_folder)]


def _option(work: PreparedJob, option: str, artifact: artifacts.Artifact | None, name: str) -> None:
    """A stored file as an input of the command, where there is one."""
    if artifact is not None:
        path = work.folder / INPUT / name
        work.wanted.append((artifact.digest, path))
        work.command += [option, str(path)]


_MAKERS: dict[str, Callable[[Session, Settings, Claim, PreparedJob], None]] = {
    "train": _train, "evaluate": _evaluate, "samples": _samples, "preflight": _preflight, "export": _export,
    "import": _import, "report": _report, "export_onnx": _export_onnx, "predict": _predict,
}  # fmt: skip
