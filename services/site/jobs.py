"""A job's life: the states, the moves between them, and who may make them.

Every function works in the caller's transaction. A worker's writes go through `held`, which carries its fencing token:
a worker that lost its lease changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.site import audit
from services.site.db.models import DeviceLease, Job, JobEvent, clock
from services.site.errors import Refusal

State = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
Kind = Literal["train", "evaluate", "preflight", "samples"]

MOVES: dict[State, frozenset[State]] = {
    "queued": frozenset({"running", "cancelled"}),
    "running": frozenset({"succeeded", "failed", "cancelling", "queued"}),
    "cancelling": frozenset({"cancelled", "succeeded", "failed"}),
    "succeeded": frozenset(),
    "failed": frozenset({"queued"}),
    "cancelled": frozenset({"queued"}),
}
"""From a state to those that may follow. Out of `failed` and `cancelled` only a person leads: retry."""
TERMINAL: frozenset[State] = frozenset({"succeeded", "failed", "cancelled"})
ACTIVE: frozenset[State] = frozenset({"queued", "running", "cancelling"})
HELD: tuple[State, ...] = ("running", "cancelling")
"""States in which a worker holds the job."""


class LeaseLost(Refusal):
    """Another attempt holds the job now; this one's write changed nothing."""

    def __init__(self, claim: Claim) -> None:
        super().__init__("lease_lost", f"{claim.job_id} is no longer attempt {claim.attempt}'s")


@dataclass(frozen=True)
class Claim:
    """A worker's hold on a job."""

    job_id: str
    attempt: int
    """Fencing token."""
    worker: str
    host: str
    devices: tuple[str, ...]


def submit(
    session: Session, *, kind: Kind, params: dict[str, Any], actor: str, key: str | None, body: Any, gpus: int = 0,
    run_id: str | None = None, checkpoint_id: str | None = None, queue_limit: int = 10_000,
) -> tuple[Job, bool]:  # fmt: skip
    """Queue a job; return it and whether it is new.

    Args:
        session: in a write transaction.
        kind: what to do.
        params: how.
        actor: who asks.
        key: Idempotency-Key; the same one by the same actor with the same body gives the job it made before.
        body: what the key stands for, JSON-able.
        gpus: devices that it takes.
        run_id: the run that it belongs to.
        checkpoint_id: what it starts from.
        queue_limit: queued jobs beyond which it is refused.

    Raises:
        Refusal: `idempotency_key_reused`, `queue_full`.
    """
    digest = _digest(body)
    if key is not None and (found := _same_key(session, actor, key, digest)):
        return found, False
    if queued(session) >= queue_limit:
        raise Refusal("queue_full", f"{queue_limit} jobs wait already; try again later", {"Retry-After": "60"})
    job = Job(
        kind=kind, params=params, created_by=actor, idempotency_key=key, body_digest=digest, gpus=gpus, run_id=run_id,
        checkpoint_id=checkpoint_id, rung_at=float(session.scalar(select(clock())) or 0.0),
    )  # fmt: skip
    try:
        with session.begin_nested():
            session.add(job)
    except IntegrityError:  # PostgreSQL: another process committed the same key meanwhile
        found = _same_key(session, actor, str(key), digest)
        if found is None:
            raise
        return found, False
    add_events(session, job.id, 0, [{"event": "queued"}])
    audit.record(session, actor, "job.submit", job.id, kind=kind)
    return job, True


def replayed(session: Session, actor: str, key: str, body: Any) -> Job | None:
    """The job that this Idempotency-Key made before. Raises Refusal `idempotency_key_reused` for another body."""
    return _same_key(session, actor, key, _digest(body))


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _same_key(session: Session, actor: str, key: str, digest: str) -> Job | None:
    found = session.scalars(select(Job).where(Job.created_by == actor, Job.idempotency_key == key)).first()
    if found is not None and found.body_digest != digest:
        raise Refusal("idempotency_key_reused", f"this Idempotency-Key made {found.id} from another body; use a new key")
    return found


def queued(session: Session) -> int:
    """Number of waiting jobs."""
    return session.scalar(select(func.count()).select_from(Job).where(Job.state == "queued")) or 0


def add_events(session: Session, job_id: str, attempt: int, events: Sequence[dict[str, Any]]) -> None:
    """Append to a job's story."""
    last = session.scalar(update(Job).where(Job.id == job_id).values(events=Job.events + len(events)).returning(Job.events))
    first = int(last or 0) - len(events) + 1
    session.add_all(JobEvent(job_id=job_id, seq=first + i, attempt=attempt, data=data) for i, data in enumerate(events))
    session.flush()


def claim(
    session: Session, *, worker: str, host: str, devices: Sequence[str], lease: float, job_id: str | None = None
) -> Claim | None:
    """Take the oldest waiting job that fits, or nothing.

    A job that needs devices takes that many of the worker's free ones; where fewer are free it stays in the queue, and
    a later job that needs none may go first.

    Args:
        session: in a write transaction.
        worker: who takes it.
        host: where the devices are.
        devices: those the worker may use.
        lease: seconds until another may take it, unless renewed.
        job_id: only this one.
    """
    now = float(session.scalar(select(clock())) or 0.0)
    busy = select(DeviceLease.device).where(
        DeviceLease.host == host, DeviceLease.until >= now, DeviceLease.device.in_(devices)
    )
    if session.get_bind().dialect.name == "postgresql":  # two workers of one host must not take the same device
        session.execute(select(func.pg_advisory_xact_lock(func.hashtext(host))))
    taken = set(session.scalars(busy))
    free = [device for device in devices if device not in taken]
    choice = select(Job).where(Job.state == "queued", Job.gpus <= len(free)).order_by(Job.queued_at, Job.id).limit(1)
    if job_id is not None:
        choice = choice.where(Job.id == job_id)
    job = session.scalars(choice.with_for_update(skip_locked=True)).first()
    if job is None:
        return None
    moved = session.scalar(
        update(Job)
        .where(Job.id == job.id, Job.state == "queued")
        .values(
            state="running", attempt=Job.attempt + 1, tries=Job.tries + 1, worker=worker, lease_until=now + lease,
            started_at=func.coalesce(Job.started_at, now), progress=None,
        )
        .returning(Job.attempt)
    )  # fmt: skip
    if moved is None:
        return None
    got = Claim(job.id, moved, worker, host, tuple(free[: job.gpus]))
    for device in got.devices:
        session.merge(DeviceLease(host=host, device=device, job_id=job.id, attempt=moved, until=now + lease))
    add_events(session, job.id, moved, [{"event": "claimed", "worker": worker, "devices": list(got.devices)}])
    return got


def held(session: Session, claim: Claim, lease: float | None = None, **values: Any) -> Job:
    """Write to a job that `claim` holds, renewing its lease by `lease` seconds where given; return the row.

    Raises:
        LeaseLost: it holds it no more; nothing was written.
    """
    if lease is not None:
        values["lease_until"] = clock() + lease
    job = session.scalar(
        update(Job)
        .where(Job.id == claim.job_id, Job.attempt == claim.attempt, Job.state.in_(HELD))
        .values(worker=claim.worker, **values)
        .returning(Job)
        .execution_options(populate_existing=True)
    )
    if job is None:
        raise LeaseLost(claim)
    if lease is not None and claim.devices:
        session.execute(_leases(claim).values(until=clock() + lease))
    return job


def _leases(claim: Claim) -> Any:
    return update(DeviceLease).where(DeviceLease.job_id == claim.job_id, DeviceLease.attempt == claim.attempt)


def finish(
    session: Session, claim: Claim, state: Literal["succeeded", "failed", "cancelled"], *,
    result: dict[str, Any] | None = None, error: dict[str, Any] | None = None,
) -> Job:  # fmt: skip
    """End a job that `claim` holds. A success that a cancel met on its way stays a success: the work is done.

    Raises:
        LeaseLost: it holds it no more.
    """
    job = held(session, claim)
    return _end(session, job, state, f"worker {claim.worker}", result, error)


def requeue(session: Session, job: Job, error: dict[str, Any], max_tries: int) -> Job:
    """After a crash: back to the queue, to resume from the newest checkpoint; or the end, when it was tried enough.

    Args:
        session: in a write transaction.
        job: a held one.
        error: {code, message} of what happened.
        max_tries: attempts before it is given up.
    """
    _free(session, job)
    if job.state == "cancelling":
        return _end(session, job, "cancelled", "reconciler", None, None)
    if job.tries >= max_tries:
        text = f"{error['message']}; given up after {job.tries} attempts"
        return _end(session, job, "failed", "reconciler", None, {**error, "message": text})
    _move(job, "queued")
    job.worker, job.lease_until, job.rung_at, job.progress = None, None, None, None
    session.flush()
    add_events(session, job.id, job.attempt, [{"event": "requeued", **error}])
    return job


def give_back(session: Session, claim: Claim, why: str) -> Job:
    """A worker that leaves in order hands its job back; it counts as no attempt and resumes elsewhere.

    Raises:
        LeaseLost: it holds it no more.
    """
    job = held(session, claim)
    job.tries -= 1
    return requeue(session, job, {"code": "stopped", "message": why}, max_tries=job.tries + 1)


def cancel(session: Session, job_id: str, actor: str) -> Job:
    """Ask a job to end: at once while it waits, through its worker while it runs.

    Raises:
        Refusal: `not_found`, or `conflict` where it has ended.
    """
    job = locked(session, job_id)
    if job.state == "cancelling":
        return job
    if job.state not in ACTIVE:
        raise Refusal("conflict", f"{job_id} has {job.state} already")
    audit.record(session, actor, "job.cancel", job_id)
    if job.state == "queued":
        return _end(session, job, "cancelled", actor, None, None)
    _move(job, "cancelling")
    session.flush()
    add_events(session, job_id, job.attempt, [{"event": "cancelling"}])
    return job


def retry(session: Session, job_id: str, actor: str) -> Job:
    """Queue a failed or cancelled job again; it goes on from its newest checkpoint.

    Raises:
        Refusal: `not_found`, or `conflict` where it has not failed or been cancelled.
    """
    job = locked(session, job_id)
    if job.state not in ("failed", "cancelled"):
        raise Refusal("conflict", f"{job_id} is {job.state}; only a failed or cancelled job can be retried")
    audit.record(session, actor, "job.retry", job_id)
    now = float(session.scalar(select(clock())) or 0.0)
    _move(job, "queued")
    job.tries, job.queued_at, job.rung_at = 0, now, now
    job.finished_at = job.error = job.worker = job.progress = None
    session.flush()
    add_events(session, job_id, job.attempt, [{"event": "queued"}])
    return job


def locked(session: Session, job_id: str) -> Job:
    """The row, locked until the transaction ends. Raises Refusal `not_found`."""
    job = session.scalars(
        select(Job).where(Job.id == job_id).with_for_update().execution_options(populate_existing=True)
    ).first()
    if job is None:
        raise Refusal("not_found", f"there is no job {job_id}")
    return job


def expire(session: Session, max_tries: int) -> list[Job]:
    """Take the jobs whose lease ran out from their workers."""
    late = session.scalars(
        select(Job)
        .where(Job.state.in_(HELD), or_(Job.lease_until.is_(None), Job.lease_until < clock()))
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    ).all()
    error = {"code": "worker_lost", "message": "the worker was not heard of until its lease ran out"}
    return [requeue(session, job, error, max_tries) for job in late]


def unrung(session: Session, after: float, limit: int) -> list[str]:
    """Ids of the `limit` oldest jobs that wait unheard for `after` seconds; notes that the doorbell rings now."""
    quiet = (Job.state == "queued", or_(Job.rung_at.is_(None), Job.rung_at < clock() - after))
    oldest = select(Job.id).where(*quiet).order_by(Job.queued_at, Job.id).limit(limit)
    return list(session.scalars(update(Job).where(*quiet, Job.id.in_(oldest)).values(rung_at=clock()).returning(Job.id)))


def _end(
    session: Session, job: Job, state: State, actor: str, result: dict[str, Any] | None, error: dict[str, Any] | None
) -> Job:
    _move(job, state)
    _free(session, job)
    job.finished_at = float(session.scalar(select(clock())) or 0.0)
    job.result, job.error, job.lease_until = result, error, None
    session.flush()
    add_events(session, job.id, job.attempt, [{"event": state, **({"error": error} if error else {})}])
    audit.record(session, actor, f"job.{state}", job.id)
    return job


def _free(session: Session, job: Job) -> None:
    session.execute(
        update(DeviceLease).where(DeviceLease.job_id == job.id, DeviceLease.attempt <= job.attempt).values(until=0.0)
    )


def _move(job: Job, state: State) -> None:
    if state not in MOVES[job.state]:  # type: ignore[index]
        raise Refusal("conflict", f"{job.id} is {job.state}; it cannot become {state}")
    job.state = state
