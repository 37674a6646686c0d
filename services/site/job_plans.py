"""From what a person asks for to a job that can run: everything it needs is looked up, or refused, before it is queued.

What it finds it holds until the transaction ends (PostgreSQL; SQLite has one writer): nobody deletes a checkpoint between
the look and the job that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session
from sqlalchemy.sql.selectable import ForUpdateArg

from relay_core.config import strategy_facts
from services.site import artifacts, runs, workers
from services.site.db import Base, Bundle, Checkpoint, Dataset, Evaluation, Job, Run
from services.site.errors import Refusal

Row = TypeVar("Row", bound=Base)


@dataclass(frozen=True)
class JobPlan:
    """What `jobs.submit` needs to know."""

    params: dict[str, Any]
    gpus: int = 0
    run_id: str | None = None
    checkpoint_id: str | None = None


RESERVED = "stats"
"""No model's name: /v2/models/stats is of them all."""
_HOLD = ForUpdateArg(read=True, key_share=True)


def train(
    session: Session, run_id: str, *, site: int | None = None, datasets: Mapping[int, str] | None = None,
    checkpoint_id: str | None = None, gpus: int = 1,
) -> JobPlan:  # fmt: skip
    """Train one site of a run, or with no site given and none set for the run, all of them on this machine.

    Args:
        session: to read with.
        run_id: the run.
        site: task_id of the site; default: the one that the run says this site is.
        datasets: task_id -> data set id; a site that is not in it takes the data set of its own name, where there is one.
        checkpoint_id: what a later site starts from; default: the newest one that the site before left here.
        gpus: devices to train on together.

    Raises:
        Refusal: `not_found`, `dataset_missing`, `checkpoint_invalid`, `invalid_request`.
    """
    run = need(session, Run, run_id)
    site = run.site if site is None else site
    order = [entry["task_id"] for entry in run.sites if entry["trained"]]
    if site is not None and site not in order:
        raise Refusal("invalid_request", f"run {run.name} has no site {site}; it has {', '.join(map(str, order))}")
    found = _datasets(session, run, datasets or {})
    for task_id in [site] if site is not None else order:
        if task_id not in found:
            raise _missing(run, task_id)
    base = None
    facts = strategy_facts(run.strategy)
    if facts.holds_real_images or not facts.in_service:
        raise Refusal(
            "invalid_request", f"the strategy of run {run.name}, {run.strategy}, is not one that a service may run"
        )
    if site is not None and facts.sequence == "continues":
        place = order.index(site)
        base = _base(session, run, order[place - 1] if place else None, checkpoint_id)
    elif checkpoint_id is not None:
        raise Refusal("invalid_request", "checkpoint_id goes with one site of a relay that starts from another")
    params = {"site": site, "datasets": {str(task_id): row.id for task_id, row in found.items()}}
    return JobPlan(params, gpus, run.id, base.id if base else None)


def _base(session: Session, run: Run, before: int | None, checkpoint_id: str | None) -> Checkpoint | None:
    if before is None:
        if checkpoint_id is not None:
            raise Refusal("invalid_request", "the first site of a run starts from nothing: leave checkpoint_id out")
        return None
    only_scored = select(Bundle.checkpoint_id).where(Bundle.purpose == "evaluate", Bundle.checkpoint_id.is_not(None))
    if checkpoint_id is None:
        newest = select(Checkpoint).where(Checkpoint.run_id == run.id, Checkpoint.task_id == before)
        newest = newest.where(Checkpoint.id.not_in(only_scored))
        newest = newest.order_by(Checkpoint.id.desc()).limit(1)
        base = session.scalars(newest.with_for_update(read=True, key_share=True)).first()
        if base is None:
            raise Refusal("checkpoint_invalid", f"site {before} of run {run.name} has left no checkpoint here yet")
        return base
    base = need(session, Checkpoint, checkpoint_id, hold=True)
    if base.run_id != run.id or base.task_id != before:
        raise Refusal("checkpoint_invalid", f"{base.id} is not of site {before} of run {run.name}")
    if session.scalars(only_scored.where(Bundle.checkpoint_id == base.id)).first() is not None:
        raise Refusal("checkpoint_invalid", f"{base.id} was imported to be scored; import it for training")
    return base


def evaluate(session: Session, checkpoint_id: str, *, datasets: Mapping[int, str] | None = None) -> JobPlan:
    """Score a checkpoint's solver on every test set of its run that is registered here.

    Raises:
        Refusal: `not_found`, `dataset_missing`.
    """
    checkpoint = need(session, Checkpoint, checkpoint_id, hold=True)
    run = need(session, Run, checkpoint.run_id)
    found = _datasets(session, run, datasets or {})
    if not found:
        raise _missing(run, checkpoint.task_id)
    params = {"datasets": {str(task_id): row.id for task_id, row in found.items()}}
    return JobPlan(params, 1, run.id, checkpoint.id)


def samples(session: Session, checkpoint_id: str, *, per_site: int = 8) -> JobPlan:
    """Draw what a checkpoint's generators remember. Raises Refusal `not_found`."""
    checkpoint = need(session, Checkpoint, checkpoint_id, hold=True)
    return JobPlan({"per_site": per_site}, 1, checkpoint.run_id, checkpoint.id)


def export_onnx(
    session: Session, checkpoint_id: str, *, name: str | None = None, precision: str = "fp32",
    datasets: Mapping[int, str] | None = None,
) -> JobPlan:  # fmt: skip
    """Make a checkpoint's solver a model that can be served, proved on every test set of its run that is registered here.

    Args:
        session: to read with.
        checkpoint_id: the checkpoint.
        name: of the model; default: from the run's name.
        precision: fp32, fp16 or int8.
        datasets: task_id -> data set id; a site that is not in it takes the data set of its own name.

    Raises:
        Refusal: `not_found`, `dataset_missing`.
    """
    plan = evaluate(session, checkpoint_id, datasets=datasets)
    run = need(session, Run, str(plan.run_id))
    if name == RESERVED:
        raise Refusal("invalid_request", f"a model cannot be called {RESERVED}: its address means something else")
    name = name or re.sub(r"[^a-z0-9._-]+", "-", run.name.lower()).strip("-._")[:64]
    name = f"model-{name}"[:64] if name in ("", RESERVED) else name
    return replace(plan, params={**plan.params, "name": name, "precision": precision}, gpus=0)


def predict(session: Session, checkpoint_id: str, dataset_id: str) -> JobPlan:
    """Predict every image of a data set. Raises Refusal `not_found`."""
    checkpoint = need(session, Checkpoint, checkpoint_id, hold=True)
    dataset = need(session, Dataset, dataset_id, hold=True)
    return JobPlan({"dataset": dataset.id}, 1, checkpoint.run_id, checkpoint.id)


def preflight(session: Session, dataset_id: str, *, previews: int = 8) -> JobPlan:
    """Check every file of a data set. Raises Refusal `not_found`."""
    return JobPlan({"dataset": need(session, Dataset, dataset_id, hold=True).id, "previews": previews})


def export(session: Session, checkpoint_id: str, *, recipient: str | None = None, half: bool = False) -> JobPlan:
    """Build the bundle that carries a checkpoint to the next site.

    Args:
        session: to read with.
        checkpoint_id: the checkpoint.
        recipient: name or fingerprint of a trusted key: only its owner can open the file; None: everybody can.
        half: whether to carry weights in half precision.

    Raises:
        Refusal: `not_found`; `real_images`; `conflict` for one that was imported; `bundle_incomplete` where the site
            before it in the relay was trained here too, and never exported.
    """
    checkpoint = need(session, Checkpoint, checkpoint_id, hold=True)
    runs.require_no_images(need(session, Run, checkpoint.run_id))
    if (brought := _bundle_of(session, checkpoint.id, "import")) is not None:
        raise Refusal("conflict", f"{checkpoint.id} was brought here, by {brought.id}: export what is trained from it")
    before = None
    if (parent := checkpoint.parent_id) is not None:
        before = _bundle_of(session, parent, "import") or _bundle_of(session, parent, "export")
        if before is None:
            raise Refusal("bundle_incomplete", f"{checkpoint.id} grew out of {parent}; export that one first")
    params = {"recipient": recipient, "half": half, "parent": before.id if before else None}
    return JobPlan(params, 0, checkpoint.run_id, checkpoint.id)


def _bundle_of(session: Session, checkpoint_id: str, direction: str) -> Bundle | None:
    """The newest bundle that a checkpoint went into, or came from."""
    found = select(Bundle).where(Bundle.checkpoint_id == checkpoint_id, Bundle.direction == direction)
    return session.scalars(found.order_by(Bundle.id.desc()).limit(1)).first()


def report(session: Session, evaluation_id: str) -> JobPlan:
    """Sign an evaluation's scores, for the coordinator of the relay.

    Raises:
        Refusal: `not_found`; `conflict` where its checkpoint was deleted; `bundle_incomplete` where its scores are gone.
    """
    evaluation = need(session, Evaluation, evaluation_id, hold=True)
    if evaluation.checkpoint_id is None:
        raise Refusal("conflict", f"the checkpoint that {evaluation.id} scored was deleted")
    checkpoint = need(session, Checkpoint, evaluation.checkpoint_id, hold=True)
    trained = need(session, Job, evaluation.job_id).kind == "train"
    owner = checkpoint.id if trained else evaluation.job_id
    if "scores.json" not in artifacts.attached(session, owner):
        raise Refusal("bundle_incomplete", f"{owner} has no scores.json; evaluate {checkpoint.id} again")
    return JobPlan({"evaluation": evaluation.id, "scores": owner}, 0, evaluation.run_id, checkpoint.id)


def check_gpus(session: Session, gpus: int, lately: float) -> None:
    """Whether a worker that was seen within `lately` seconds can take a job of so many GPUs; where none was, one may come.

    A worker without a GPU trains on its CPU what asks for one.

    Raises:
        Refusal: `device_unavailable`: it would wait for ever.
    """
    found = [int(row.facts.get("gpus", 0)) for row in workers.lately(session, lately)]
    if found and gpus > max(1, *found):
        raise Refusal("device_unavailable", f"{gpus} GPUs are asked for; the largest worker here has {max(found)}")


def need(session: Session, table: type[Row], row_id: str, *, hold: bool = False) -> Row:
    """The row with this id; with `hold` nobody deletes it before the transaction ends. Raises Refusal `not_found`."""
    row = session.get(table, row_id, with_for_update=_HOLD if hold else None)
    if row is None:
        raise Refusal("not_found", f"there is no {table.__name__.lower()} {row_id}")
    return row


def _datasets(session: Session, run: Run, given: Mapping[int, str]) -> dict[int, Dataset]:
    names = {entry["task_id"]: entry["name"] for entry in run.sites}
    for task_id in given:
        if task_id not in names:
            raise Refusal("invalid_request", f"datasets: run {run.name} has no site {task_id}")
    found = {task_id: need(session, Dataset, dataset_id, hold=True) for task_id, dataset_id in given.items()}
    named = select(Dataset).where(Dataset.name.in_(names.values())).order_by(Dataset.id)
    by_name = {row.name: row for row in session.scalars(named.with_for_update(read=True, key_share=True))}
    for task_id, name in names.items():
        if name in by_name:
            found.setdefault(task_id, by_name[name])
    return found


def _missing(run: Run, task_id: int) -> Refusal:
    name = next(entry["name"] for entry in run.sites if entry["task_id"] == task_id)
    return Refusal(
        "dataset_missing",
        f"site {task_id} of run {run.name} has no images here: register a data set of the name {name!r}, "
        f"or name one under datasets: {{{task_id}: id}}",
    )
