"""Plan a job from what a person asks for: whatever the job needs is looked up, or refused, before it is queued.

The rows that are found stay locked until the transaction ends (PostgreSQL; SQLite has one writer), so that nobody deletes
a checkpoint between the look-up and the job that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from sqlalchemy import or_, select
from sqlalchemy.orm import Session
from sqlalchemy.sql.selectable import ForUpdateArg

from relay_core.bundle import AUDIT, MAX_REASON, ReleaseMode
from relay_core.config import strategy_facts
from services.site import artifacts, runs, trust, workers
from services.site.db import Base, Bundle, Checkpoint, Dataset, Evaluation, Job, Run
from services.site.errors import Refusal

Row = TypeVar("Row", bound=Base)


@dataclass(frozen=True)
class JobPlan:
    """Holds what a checked job needs, for `jobs.submit` to queue it."""

    params: dict[str, Any]
    gpus: int = 0
    run_id: str | None = None
    checkpoint_id: str | None = None


RESERVED = "stats"
"""A name that no model may have: /v2/models/stats answers for all models."""
_HOLD = ForUpdateArg(read=True, key_share=True)


def train(
    session: Session, run_id: str, *, site: int | None = None, datasets: Mapping[int, str] | None = None,
    checkpoint_id: str | None = None, until: Literal["end", "solver"] = "end", gpus: int = 1,
) -> JobPlan:  # fmt: skip
    """Plan the training of one site of a run; with no site given and none set for the run, of all its sites here.

    Args:
        session: the database session to read with.
        run_id: id of the run.
        site: task_id of the site; default: the one that the run says this site is.
        datasets: task_id -> data set id; a site that is not in it takes the data set of its own name, where there is one.
        checkpoint_id: the checkpoint that a later site starts from; default: the newest that the site before left here. One
            of the site itself that is not finished is gone on with.
        until: where it ends: at the `end`, or where the `solver` is ready.
        gpus: number of GPUs to train on together.

    Raises:
        Refusal: `not_found` for an unknown run, data set or checkpoint; `dataset_missing` for a site without images here;
            `checkpoint_invalid` where the site before left no checkpoint, or `checkpoint_id` is not one to start from;
            `invalid_request` for an unknown site, a strategy that no service may run, a needless `checkpoint_id`, or the
            solvers of all sites alone, as each site needs the generators of the one before;
            `signer_revoked` or `signer_unknown` where it would go on from a model of a key that is trusted no more.
    """
    run = need(session, Run, run_id)
    site = run.site if site is None else site
    order = [entry["task_id"] for entry in run.sites if entry["trained"]]
    if site is not None and site not in order:
        raise Refusal("invalid_request", f"run {run.name} has no site {site}; it has {', '.join(map(str, order))}")
    dataset_rows = _datasets(session, run, datasets or {})
    for task_id in [site] if site is not None else order:
        if task_id not in dataset_rows:
            raise _dataset_missing(run, task_id)
    base = None
    runs.require_may_run(run)
    if site is None and until == "solver":
        raise Refusal("invalid_request", "until: solver leaves a site's generators, which the next site needs: name a site")
    if site is not None and strategy_facts(run.strategy).sequence == "continues":
        base = _base_checkpoint(session, run, order, site, checkpoint_id, until)
        trust.require_line(session, base.id if base else None)
    elif checkpoint_id is not None:
        raise Refusal("invalid_request", "checkpoint_id goes with one site of a relay that starts from another")
    params = {"site": site, "datasets": {str(task_id): row.id for task_id, row in dataset_rows.items()}, "until": until}
    return JobPlan(params, gpus, run.id, base.id if base else None)


def _base_checkpoint(
    session: Session, run: Run, order: list[int], site: int, checkpoint_id: str | None, until: str
) -> Checkpoint | None:
    """Return the checkpoint that a training goes on from: of the site before, or the site's own; None starts anew."""
    given = need(session, Checkpoint, checkpoint_id, hold=True) if checkpoint_id is not None else None
    if given is not None and (given.run_id, given.task_id) == (run.id, site):
        if given.finished:
            raise Refusal("checkpoint_invalid", f"the training of {given.id} is finished; a later site may start from it")
        if until == "solver":
            raise Refusal(
                "checkpoint_invalid", f"the solver of {given.id} is ready; without until its generators are trained"
            )
        return given
    position = order.index(site)
    if position == 0:
        if given is not None:
            raise Refusal("invalid_request", "the first site of a run starts from nothing: leave checkpoint_id out")
        return None
    previous_site = order[position - 1]
    only_scored = select(Bundle.checkpoint_id).where(Bundle.purpose == "evaluate", Bundle.checkpoint_id.is_not(None))
    if given is None:
        newest = select(Checkpoint).where(Checkpoint.run_id == run.id, Checkpoint.task_id == previous_site)
        newest = newest.where(Checkpoint.id.not_in(only_scored))
        newest = newest.where(or_(Checkpoint.steps.is_(None), Checkpoint.step >= Checkpoint.steps))
        newest = newest.order_by(Checkpoint.id.desc()).limit(1)
        base = session.scalars(newest.with_for_update(read=True, key_share=True)).first()
        if base is None:
            raise Refusal("checkpoint_invalid", f"site {previous_site} of run {run.name} has left no checkpoint here yet")
        return base
    if given.run_id != run.id or given.task_id != previous_site:
        raise Refusal("checkpoint_invalid", f"{given.id} is not of site {previous_site} of run {run.name}")
    if not given.finished:
        raise Refusal("checkpoint_invalid", f"the training of {given.id} is not finished: its solver alone is ready")
    if session.scalars(only_scored.where(Bundle.checkpoint_id == given.id)).first() is not None:
        raise Refusal("checkpoint_invalid", f"{given.id} was imported to be scored; import it for training")
    return given


def evaluate(session: Session, checkpoint_id: str, *, datasets: Mapping[int, str] | None = None) -> JobPlan:
    """Plan the scoring of a checkpoint's solver on every test set of its run that is registered here.

    Raises:
        Refusal: `not_found` for an unknown checkpoint or data set; `dataset_missing` where no test set is registered.
    """
    checkpoint = need(session, Checkpoint, checkpoint_id, hold=True)
    run = need(session, Run, checkpoint.run_id)
    dataset_rows = _datasets(session, run, datasets or {})
    if not dataset_rows:
        raise _dataset_missing(run, checkpoint.task_id)
    params = {"datasets": {str(task_id): row.id for task_id, row in dataset_rows.items()}}
    return JobPlan(params, 1, run.id, checkpoint.id)


def samples(session: Session, checkpoint_id: str, *, per_site: int = 8) -> JobPlan:
    """Plan the drawing of `per_site` samples for each site by a checkpoint's generators. Raises Refusal `not_found`."""
    checkpoint = need(session, Checkpoint, checkpoint_id, hold=True)
    return JobPlan({"per_site": per_site}, 1, checkpoint.run_id, checkpoint.id)


def compare_sites(
    session: Session, checkpoint_id: str, *, datasets: Mapping[int, str] | None = None, images: int = 300
) -> JobPlan:
    """Plan the comparison of the images that are registered here with those that a checkpoint's generators draw.

    Raises:
        Refusal: `not_found` for an unknown checkpoint or data set; `dataset_missing` where no data set of the run is
            registered, or only one and the run's strategy has no generators, so that there is nothing to compare it with.
    """
    plan = evaluate(session, checkpoint_id, datasets=datasets)
    run = need(session, Run, str(plan.run_id))
    if len(plan.params["datasets"]) < 2 and not strategy_facts(run.strategy).has_generators:
        raise Refusal(
            "dataset_missing",
            f"nothing to compare: strategy {run.strategy} draws no images of sites before, and one site's images are here",
        )
    return replace(plan, params={**plan.params, "images": images})


def export_onnx(
    session: Session, checkpoint_id: str, *, name: str | None = None, precision: str = "fp32",
    datasets: Mapping[int, str] | None = None,
) -> JobPlan:  # fmt: skip
    """Plan the export of a checkpoint's solver as a model to serve, proved on every test set of its run registered here.

    Args:
        session: the database session to read with.
        checkpoint_id: id of the checkpoint.
        name: name of the model; default: made from the run's name.
        precision: number format of the model: fp32, fp16 or int8.
        datasets: task_id -> data set id; a site that is not in it takes the data set of its own name.

    Raises:
        Refusal: `not_found` for an unknown checkpoint or data set; `dataset_missing` where no test set is registered;
            `invalid_request` for the name `RESERVED`; `signer_revoked` or `signer_unknown` as in `train`.
    """
    trust.require_line(session, checkpoint_id)
    plan = evaluate(session, checkpoint_id, datasets=datasets)
    run = need(session, Run, str(plan.run_id))
    if name == RESERVED:
        raise Refusal("invalid_request", f"a model cannot be called {RESERVED}: its address means something else")
    name = name or re.sub(r"[^a-z0-9._-]+", "-", run.name.lower()).strip("-._")[:64]
    name = f"model-{name}"[:64] if name in ("", RESERVED) else name
    return replace(plan, params={**plan.params, "name": name, "precision": precision}, gpus=0)


def predict(session: Session, checkpoint_id: str, dataset_id: str) -> JobPlan:
    """Plan the prediction of every image of a data set. Raises Refusal `not_found`, `signer_revoked`, `signer_unknown`."""
    checkpoint = need(session, Checkpoint, checkpoint_id, hold=True)
    trust.require_line(session, checkpoint.id)
    dataset = need(session, Dataset, dataset_id, hold=True)
    return JobPlan({"dataset": dataset.id}, 1, checkpoint.run_id, checkpoint.id)


def predict_study(model: str, version: int, output: str | None) -> JobPlan:
    """Plan the prediction of one study with a version of a model; study and model are attached to `jobs.uploaded`."""
    return JobPlan({"model": model, "version": version, "output": output})


def preflight(session: Session, dataset_id: str, *, previews: int = 8) -> JobPlan:
    """Plan the check of every file of a data set. Raises Refusal `not_found`."""
    return JobPlan({"dataset": need(session, Dataset, dataset_id, hold=True).id, "previews": previews})


def trust_card(card: str, run_id: str | None) -> JobPlan:
    """Plan that a worker, which has the folder of keys, trusts a card: for one run, or for every one."""
    return JobPlan({"card": card, "run": run_id})


def revoke_key(fingerprint: str) -> JobPlan:
    """Plan that a worker trusts a key no more."""
    return JobPlan({"revoke": fingerprint})


def privacy_audit(
    session: Session, checkpoint_id: str, *, datasets: Mapping[int, str] | None = None, samples: int = 10_000,
    discriminators: bool = True,
) -> JobPlan:  # fmt: skip
    """Plan the attacks on a checkpoint that was trained here, by the images of its site.

    Raises:
        Refusal: `not_found`; `dataset_missing`; `conflict` for a checkpoint that was imported, whose images are elsewhere;
            `bundle_incomplete` for one whose training is not finished.
    """
    checkpoint = need(session, Checkpoint, checkpoint_id, hold=True)
    run = need(session, Run, checkpoint.run_id)
    if not checkpoint.finished:
        raise Refusal("bundle_incomplete", f"the training of {checkpoint.id} is not finished; an audit is of what leaves")
    if (imported := _newest_bundle(session, checkpoint.id, "import")) is not None:
        raise Refusal(
            "conflict",
            f"{checkpoint.id} was brought here, by {imported.id}: the images that it was trained on are elsewhere",
        )
    dataset_rows = _datasets(session, run, datasets or {})
    if checkpoint.task_id not in dataset_rows:
        raise _dataset_missing(run, checkpoint.task_id)
    params = {"datasets": {str(checkpoint.task_id): dataset_rows[checkpoint.task_id].id}, "samples": samples}
    params |= {} if discriminators else {"discriminators": False}
    return JobPlan(params, 1, run.id, checkpoint.id)


def export(
    session: Session, checkpoint_id: str, *, recipient: str | None = None, half: bool = False, policy: ReleaseMode = "off",
    override: str | None = None, discriminators: bool = True,
) -> JobPlan:  # fmt: skip
    """Plan the building of the bundle that carries a checkpoint to the next site.

    Args:
        session: the database session to read with.
        checkpoint_id: id of the checkpoint.
        recipient: name or fingerprint of a trusted key: only its owner can open the file; None: everybody can.
        half: whether to carry weights in half precision.
        policy: the site's policy of release.
        override: why it may leave although its privacy audit did not pass.
        discriminators: whether they travel; else the next site's start anew.

    Raises:
        Refusal: `release_refused` where the policy requires a privacy audit, and there is none and no reason to do without;
            `not_found`; `real_images` where the run's strategy keeps images of patients in its checkpoints;
            `bundle_incomplete` for a checkpoint whose generators are not trained to their end;
            `conflict` for a checkpoint that was imported; `bundle_incomplete` where the checkpoint that it was trained
            from is of this site too, and was never exported; `signer_revoked` or `signer_unknown` as in `train`.
    """
    checkpoint = need(session, Checkpoint, checkpoint_id, hold=True)
    trust.require_line(session, checkpoint.id)
    runs.require_no_images(need(session, Run, checkpoint.run_id))
    if not checkpoint.finished:
        raise Refusal(
            "bundle_incomplete", f"the solver of {checkpoint.id} alone is ready; train its site on with this checkpoint_id"
        )
    if (imported := _newest_bundle(session, checkpoint.id, "import")) is not None:
        raise Refusal("conflict", f"{checkpoint.id} was brought here, by {imported.id}: export what is trained from it")
    if policy == "require" and override is None and AUDIT not in artifacts.attached(session, checkpoint.id):
        raise Refusal(
            "release_refused",
            f"this site lets no model leave without a privacy audit that passed: have {checkpoint.id} audited first",
        )
    parent_bundle = None
    if (parent_id := checkpoint.parent_id) is not None:
        parent_bundle = _newest_bundle(session, parent_id, "import") or _newest_bundle(session, parent_id, "export")
        if parent_bundle is None:
            raise Refusal("bundle_incomplete", f"{checkpoint.id} grew out of {parent_id}; export that one first")
    params = {"recipient": recipient, "half": half, "parent": parent_bundle.id if parent_bundle else None}
    params |= {"override": one_line(override)} if override is not None else {}
    params |= {"policy": policy} if policy == "require" else {}
    params |= {} if discriminators else {"discriminators": False}
    return JobPlan(params, 0, checkpoint.run_id, checkpoint.id)


def one_line(reason: str) -> str:
    """Return a person's reason as a bundle can carry it. Raises Refusal `reason_missing` where nothing is left of it."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in reason).split())[:MAX_REASON]
    if not line:
        raise Refusal("reason_missing", "the reason has no letter that can be read")
    return line


def _newest_bundle(session: Session, checkpoint_id: str, direction: str) -> Bundle | None:
    """Return the newest bundle that a checkpoint went into (`export`) or came from (`import`), or None."""
    bundles = select(Bundle).where(Bundle.checkpoint_id == checkpoint_id, Bundle.direction == direction)
    return session.scalars(bundles.order_by(Bundle.id.desc()).limit(1)).first()


def report(session: Session, evaluation_id: str) -> JobPlan:
    """Plan the signing of an evaluation's scores, for the coordinator of the relay.

    Raises:
        Refusal: `not_found`; `conflict` where its checkpoint was deleted; `bundle_incomplete` where its scores are gone.
    """
    evaluation = need(session, Evaluation, evaluation_id, hold=True)
    if evaluation.checkpoint_id is None:
        raise Refusal("conflict", f"the checkpoint that {evaluation.id} scored was deleted")
    checkpoint = need(session, Checkpoint, evaluation.checkpoint_id, hold=True)
    from_training = need(session, Job, evaluation.job_id).kind == "train"
    owner = checkpoint.id if from_training else evaluation.job_id
    if "scores.json" not in artifacts.attached(session, owner):
        raise Refusal("bundle_incomplete", f"{owner} has no scores.json; evaluate {checkpoint.id} again")
    return JobPlan({"evaluation": evaluation.id, "scores": owner}, 0, evaluation.run_id, checkpoint.id)


def check_gpus(session: Session, gpus: int, lately: float) -> None:
    """Check that a worker seen within the last `lately` seconds can take a job of so many GPUs.

    Where no worker was seen, nothing is refused, as one may come. A worker without a GPU runs a job of one GPU on its CPU.

    Raises:
        Refusal: `device_unavailable`: every worker has too few GPUs, and the job would wait for ever.
    """
    gpu_counts = [int(row.facts.get("gpus", 0)) for row in workers.lately(session, lately)]
    if gpu_counts and gpus > max(1, *gpu_counts):
        raise Refusal("device_unavailable", f"{gpus} GPUs are asked for; the largest worker here has {max(gpu_counts)}")


def need(session: Session, table: type[Row], row_id: str, *, hold: bool = False) -> Row:
    """Return the row with this id; with `hold` nobody deletes it before the transaction ends. Raises Refusal `not_found`."""
    row = session.get(table, row_id, with_for_update=_HOLD if hold else None)
    if row is None:
        raise Refusal("not_found", f"there is no {table.__name__.lower()} {row_id}")
    return row


def _datasets(session: Session, run: Run, requested: Mapping[int, str]) -> dict[int, Dataset]:
    names = {entry["task_id"]: entry["name"] for entry in run.sites}
    for task_id in requested:
        if task_id not in names:
            raise Refusal("invalid_request", f"datasets: run {run.name} has no site {task_id}")
    rows = {task_id: need(session, Dataset, dataset_id, hold=True) for task_id, dataset_id in requested.items()}
    same_name = select(Dataset).where(Dataset.name.in_(names.values())).order_by(Dataset.id)
    by_name = {row.name: row for row in session.scalars(same_name.with_for_update(read=True, key_share=True))}
    for task_id, name in names.items():
        if name in by_name:
            rows.setdefault(task_id, by_name[name])
    return rows


def _dataset_missing(run: Run, task_id: int) -> Refusal:
    name = next(entry["name"] for entry in run.sites if entry["task_id"] == task_id)
    return Refusal(
        "dataset_missing",
        f"site {task_id} of run {run.name} has no images here: register a data set of the name {name!r}, "
        f"or name one under datasets: {{{task_id}: id}}",
    )
