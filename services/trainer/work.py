"""Prepare claimed jobs: choose the command of each kind of job, and fetch the files that it needs."""

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

from relay_core.bundle import AUDIT
from relay_core.config import CommonDatasetKwargs, RunFile, dataset_options
from services.site import (
    ArtifactStore,
    Claim,
    Refusal,
    Settings,
    artifacts,
    bundle_exchange,
    folders,
    jobs,
    need,
    registry,
    run_file,
    runs,
    trust,
)
from services.site.db import Bundle, Checkpoint, Database, Dataset, Job, Run
from services.trainer.folder import write_run_files

INPUT = "input"
"""Name of the folder, below an attempt's, of input files; they do not count as results of the job."""
UPLOAD = "upload"
"""Name of a file that was uploaded for a job alone."""
PREDICTIONS = "predictions"
"""Name of the folder, below an attempt's, of predictions; its single masks are not published, but their archive is."""
STAGED = "masks"
"""Name of the folder of single masks below `PREDICTIONS`."""
_ANEW = ("export", "import", "report", "export_onnx", "predict_study")
"""Kinds of jobs whose attempts begin in an empty folder: the files of an earlier attempt may be incomplete."""
KEY_VARIABLES = ("RELAY_KEY_PASSPHRASE", "RELAY_KEY_PASSPHRASE_FILE")


@dataclass
class PreparedJob:
    """Describes a job that is made ready to run in `folder`."""

    job: Job
    folder: Path
    command: list[str]
    inputs: dict[str, str] = field(default_factory=dict)
    """Name of a folder of input files -> id of the row that they belong to; they do not count as results of the job."""
    base: Checkpoint | None = None
    """The checkpoint that the training starts from."""
    sites: int = 0
    """Number of sites that the job trains, and so of the checkpoints that it must leave."""
    wanted: list[tuple[str, Path]] = field(default_factory=list)
    """(digest of stored bytes, path to copy them to) of each input file."""
    keys: Path | None = None
    """Folder of the keys that the job signs with, or checks signatures with; None: it needs no keys."""
    names: dict[str, str] = field(default_factory=dict)
    """Text that the job's messages may contain -> text that people read instead."""


GRIDS = 10
"""How many grids of samples a site's training leaves on its way, where the run file does not say how often."""
CORE_VARIABLES = ("RELAY_OPS", "RELAY_PLUGINS", "RELAY_PRETRAINED")
"""Variables of the core that a job keeps: the ops to use, modules that a run file may name, folder of ImageNet weights."""


def environment(devices: tuple[str, ...], keys: Path | None = None) -> dict[str, str]:
    """Return the environment of a job's process: this process's own, without the service's settings and secrets.

    Args:
        devices: names of the devices that the process may use.
        keys: the folder of keys, for a job that needs them; such a job gets their passphrase too.
    """
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith("RELAY_") or name in CORE_VARIABLES
    }
    variables |= {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    if keys is not None:
        variables |= {name: os.environ[name] for name in KEY_VARIABLES if name in os.environ}
        variables["RELAY_KEYS"] = str(keys)
    gpus = [int(device.partition(":")[2]) for device in devices if device.startswith("cuda:")]
    if len(gpus) > 1:
        visible = [name for name in variables.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(visible[i] if visible else str(i) for i in gpus)
    return variables


def prepare(database: Database, store: ArtifactStore, settings: Settings, claim: Claim, folder: Path) -> PreparedJob:
    """Put everything that a claimed job needs into its folder.

    Raises:
        Refusal: a row, a folder or stored bytes that the job needs are gone; `signer_revoked` or `signer_unknown` where it
            would go on from a model of a key that is trusted no more.
        BundleError: the roster cannot be read.
    """
    with database.read() as session:
        job = need(session, Job, claim.job_id)
        trust.require_job(session, job, settings.keys_folder)
        work = PreparedJob(job, folder, [])
        if job.kind in _ANEW:
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        _MAKERS[job.kind](session, settings, claim, work)
    if job.kind == "import":  # whoever accepts it goes by the roster that it is verified by
        trust.confirm(database, settings.keys_folder, f"worker {claim.worker}")
    for digest, target in work.wanted:
        store.fetch(digest, target)
    return work


def _core_command(claim: Claim, *arguments: str) -> list[str]:
    """Return the core's command line for the claimed devices; for several of them it starts a process on each."""
    several = len(claim.devices) > 1
    device = ("cuda" if several else claim.devices[0]) if claim.devices else None
    core = ["-m", "relay_core", *arguments, *(["--device", device] if device else []), "--json"]
    if not several:
        return [sys.executable, *core]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(claim.devices)}"]
    return [*launcher, "--no-python", sys.executable, "-m", "services.trainer.process_guard", "0", sys.executable, *core]


def _image_folders(session: Session, settings: Settings, params: Mapping[str, Any]) -> dict[int, Path]:
    rows = {int(task_id): need(session, Dataset, row_id) for task_id, row_id in params["datasets"].items()}
    return {task_id: folders.inside(settings.data_folder, row.path) for task_id, row in rows.items()}


def _expected_images(
    session: Session, settings: Settings, run: RunFile, params: Mapping[str, Any]
) -> dict[int, dict[str, Any]]:
    """Return, for each site whose data set was checked with the run's own options, what its training images must be."""
    expected: dict[int, dict[str, Any]] = {}
    for task_id, row_id in params["datasets"].items():
        row, site = need(session, Dataset, row_id), run.site(int(task_id))
        expected[site.task_id] = {"on_changed_images": "error"} if settings.changed_images == "error" else {}
        checked_with = dataset_options(row.layout, json.dumps(row.options))
        digest = ((row.report or {}).get("digests") or {}).get("train")
        same_options = row.layout == site.dataset.name and _options(checked_with) == _options(site.data)
        if digest is not None and same_options:
            expected[site.task_id]["images_digest"] = digest
    return expected


def _named_options(row: Dataset) -> str:
    """The options of a data set, and its name as the site's, by which a table of several sites has its rows."""
    return json.dumps({**row.options, "task_name": row.name})


def _options(kwargs: CommonDatasetKwargs) -> dict[str, Any]:
    return kwargs.model_dump(mode="json", exclude={"task_id", "task_name", "img_folder", "root_path"})


def _train(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    job, folder = work.job, work.folder
    row = need(session, Run, str(job.run_id))
    runs.require_may_run(row)  # an older version may have queued it
    run = run_file(row)
    image_folders = _image_folders(session, settings, job.params)
    run_path = write_run_files(folder, run, image_folders, _expected_images(session, settings, run, job.params))
    site = job.params["site"]
    work.sites = 1 if site is not None or run.sites()[0].facts.sequence == "at_once" else len(run.task_ids)
    if job.checkpoint_id is not None:
        start = need(session, Checkpoint, job.checkpoint_id)
        folder_names = {i: run.site(i).folder_name for i in run.all_ids}
        if start.task_id == site:  # its own, of which the solver is ready
            _place(work, start, folder_names)
        own_or_before = start.parent_id if start.task_id == site else start.id
        work.base = need(session, Checkpoint, own_or_before) if own_or_before is not None else None
        if work.base is not None:
            _place(work, work.base, folder_names)
            _place_history(session, work, work.base, folder_names)
    options = ["--site", str(site)] if site is not None else []
    options += ["--until", job.params.get("until", "end"), "--grids", str(GRIDS)]
    work.command = _core_command(claim, "train", str(run_path), *options, "--out", str(folder), "--resume")


def _place(work: PreparedJob, row: Checkpoint, folder_names: Mapping[int, str]) -> None:
    """Add a checkpoint to the needed files, in its site's folder."""
    work.wanted.append((row.digest, work.folder / folder_names[row.task_id] / f"step-{row.step:08d}.safetensors"))


def _place_history(session: Session, work: PreparedJob, base: Checkpoint, folder_names: Mapping[int, str]) -> None:
    """Add to the needed files, for the score matrix, the scores of the sites before."""
    row: Checkpoint | None = base
    while row is not None:
        folder_name = folder_names[row.task_id]
        work.inputs[folder_name] = row.id
        scores = artifacts.attached(session, row.id).get("scores.json")
        if scores is not None:
            work.wanted.append((scores.digest, work.folder / folder_name / "scores.json"))
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
    run_path = write_run_files(work.folder, run, _image_folders(session, settings, work.job.params))
    work.command = _core_command(claim, "evaluate", str(checkpoint), "--run", str(run_path), "--out", str(work.folder))


def _privacy_audit(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    trust.require_keys(session, settings.keys_folder)
    work.keys = settings.keys_folder
    checkpoint = _input_checkpoint(session, work)
    row = need(session, Checkpoint, str(work.job.checkpoint_id))
    run = run_file(need(session, Run, str(work.job.run_id)))
    run_path = write_run_files(work.folder, run, _image_folders(session, settings, work.job.params))
    work.command = _core_command(
        claim, "privacy-audit", str(checkpoint), "--run", str(run_path), "--out", str(work.folder), "--keys",
        str(settings.keys_folder), "--samples", str(work.job.params["samples"]), *_policy_options(settings),
    )  # fmt: skip
    work.command += _discriminators_option(work.job.params)
    if row.parent_id is not None:
        before = need(session, Checkpoint, row.parent_id)
        path = work.folder / INPUT / f"before-{before.step:08d}.safetensors"
        work.wanted.append((before.digest, path))
        work.command += ["--reference", str(path)]


def _discriminators_option(params: Mapping[str, Any]) -> list[str]:
    return [] if params.get("discriminators", True) else ["--without-discriminators"]


def _policy_options(settings: Settings) -> list[str]:
    limits = (settings.release_max_auc, settings.release_alpha, settings.release_min_patients)
    return [f"--{name}={limit}" for name, limit in zip(("max-auc", "alpha", "min-patients"), limits, strict=True)]


def _samples(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    checkpoint = _input_checkpoint(session, work)
    count = str(work.job.params["per_site"])
    out = str(work.folder / "samples.png")
    work.command = _core_command(claim, "samples", str(checkpoint), "--per-site", count, "--out", out)


def _compare_sites(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    checkpoint = _input_checkpoint(session, work)
    run = run_file(need(session, Run, str(work.job.run_id)))
    run_path = write_run_files(work.folder, run, _image_folders(session, settings, work.job.params))
    options = ["--count", str(work.job.params["images"]), "--out", str(work.folder / "statistics.json")]
    work.command = _core_command(claim, "compare-sites", str(checkpoint), "--run", str(run_path), *options)


def _export_onnx(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    checkpoint = _input_checkpoint(session, work)
    run = run_file(need(session, Run, str(work.job.run_id)))
    run_path = write_run_files(work.folder, run, _image_folders(session, settings, work.job.params))
    options = ["--precision", work.job.params["precision"], "--out", str(work.folder / registry.FILE)]
    work.command = _core_command(claim, "export-onnx", str(checkpoint), "--run", str(run_path), *options)


def _predict(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    checkpoint = _input_checkpoint(session, work)
    row = need(session, Dataset, work.job.params["dataset"])
    path = folders.inside(settings.data_folder, row.path)
    options = ["--options", _named_options(row), "--out", str(work.folder / PREDICTIONS)]
    work.command = _core_command(claim, "predict-dataset", str(checkpoint), row.layout, str(path), *options)


def _predict_study(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    params, folder = work.job.params, work.folder / INPUT
    uploads = artifacts.attached(session, jobs.uploaded(work.job.id))
    work.wanted += [(uploads[name].digest, folder / name) for name in ("model.onnx", UPLOAD)]
    work.inputs[INPUT] = work.job.id
    work.command = _core_command(
        claim, "predict-study", str(folder / "model.onnx"), str(folder / UPLOAD), "--name", params["model"],
        "--decode-memory", str(settings.decode_memory_mib), "--decode-seconds", str(settings.decode_seconds),
        "--version", str(params["version"]), "--form", params["output"] or "measurements", "--out", str(work.folder),
    )  # fmt: skip


def _preflight(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    row = need(session, Dataset, work.job.params["dataset"])
    path = folders.inside(settings.data_folder, row.path)
    work.command = _core_command(
        claim, "preflight", row.layout, str(path), "--options", _named_options(row),
        "--previews", str(work.folder / "previews"), "--count", str(work.job.params["previews"]),
    )  # fmt: skip


def _export(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    params, bundle_path = work.job.params, str(work.folder / bundle_exchange.FILE)
    checkpoint = _input_checkpoint(session, work)
    work.command = _core_command(
        claim, "export", str(checkpoint), *_run_and_keys_options(session, settings, work), "--out", bundle_path
    )
    _add_input(work, "--scores", artifacts.attached(session, work.inputs[INPUT]).get("scores.json"), "scores.json")
    _add_input(work, "--audit", artifacts.attached(session, work.inputs[INPUT]).get(AUDIT), AUDIT)
    policy = params.get("policy", settings.release_policy)  # the API's, where that is stricter
    work.command += [f"--policy={policy}", *_policy_options(settings), *_discriminators_option(params)]
    if params.get("override") is not None:
        work.command += [f"--override={params['override']}"]
    if params["parent"] is not None:
        provenance = artifacts.attached(session, params["parent"]).get("provenance.json")
        if provenance is None:
            raise Refusal("bundle_incomplete", f"{params['parent']} has lost its provenance.json; export that hop again")
        _add_input(work, "--parent", provenance, "provenance.json")
    if params["recipient"] is not None:
        work.command += [f"--to={params['recipient']}"]  # in one word: a name may begin with a dash
    if params["half"]:
        work.command += ["--half"]


def _import(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    trust.require_keys(session, settings.keys_folder)
    row = need(session, Bundle, work.job.params["import"])
    bundle_path = ArtifactStore(settings.artifact_folder).path(row.digest)
    try:
        os.utime(bundle_path)  # a refused bundle is swept a day after its release: this keeps it while it is verified again
    except FileNotFoundError:
        raise Refusal("artifact_damaged", f"the file of {row.id} is no longer in the store; bring it again") from None
    work.names |= {str(bundle_path): row.id, bundle_path.name: row.id}
    work.inputs[INPUT], work.keys = row.id, settings.keys_folder
    (work.folder / INPUT).mkdir(exist_ok=True)
    known_runs = []
    for run in session.scalars(select(Run).order_by(Run.id)):
        path = work.folder / INPUT / f"{run.id}.yaml"
        path.write_text(run.content, encoding="utf-8")
        known_runs.append({"file": str(path), "site": run.site})
    site_state = {"runs": known_runs, "imported": bundle_exchange.imported(session, str(row.purpose))}
    path = work.folder / INPUT / "known.json"
    path.write_text(json.dumps(site_state), encoding="utf-8")
    scoring_option = ["--evaluate"] if row.purpose == "evaluate" else []
    keys_option = ["--keys", str(settings.keys_folder)]
    out_option = ["--out", str(work.folder)]
    work.command = _core_command(
        claim, "import", str(bundle_path), "--known", str(path), *keys_option, *out_option, *scoring_option
    )


def _report(session: Session, settings: Settings, claim: Claim, work: PreparedJob) -> None:
    checkpoint, scores_path = _input_checkpoint(session, work), work.folder / INPUT / "scores.json"
    scores_artifact = artifacts.attached(session, work.job.params["scores"]).get("scores.json")
    if scores_artifact is None:
        raise Refusal("bundle_incomplete", f"{work.job.params['scores']} has lost its scores.json")
    work.wanted.append((scores_artifact.digest, scores_path))
    options = ["--checkpoint", str(checkpoint), "--out", str(work.folder / "report.json")]
    work.command = _core_command(
        claim, "report", "sign", str(scores_path), *_run_and_keys_options(session, settings, work), *options
    )


def _run_and_keys_options(session: Session, settings: Settings, work: PreparedJob) -> list[str]:
    trust.require_keys(session, settings.keys_folder)
    work.keys = settings.keys_folder
    path = work.folder / "relay.yaml"
    path.write_text(need(session, Run, str(work.job.run_id)).content, encoding="utf-8")
    return ["--run", str(path), "--keys", str(settings.keys_folder)]


def _add_input(work: PreparedJob, flag: str, artifact: artifacts.Artifact | None, name: str) -> None:
    """Add a stored file, where there is one, to the inputs and to the command."""
    if artifact is not None:
        path = work.folder / INPUT / name
        work.wanted.append((artifact.digest, path))
        work.command += [flag, str(path)]


_MAKERS: dict[str, Callable[[Session, Settings, Claim, PreparedJob], None]] = {
    "train": _train, "evaluate": _evaluate, "samples": _samples, "preflight": _preflight, "export": _export,
    "import": _import, "report": _report, "export_onnx": _export_onnx, "predict": _predict,
    "predict_study": _predict_study, "privacy_audit": _privacy_audit, "compare_sites": _compare_sites,
}  # fmt: skip
