"""Define the states of a job, the moves between them, and what people may do to a job (for workers see `leases`).

Every function works in the caller's transaction.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import ColumnElement, func, not_, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.site import artifacts, audit
from services.site.db import DeviceLease, Job, JobEvent, clock, lately, now, passed
from services.site.errors import Refusal

State = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
Kind = Literal[
    "train",
    "evaluate",
    "preflight",
    "samples",
    "export",
    "import",
    "report",
    "export_onnx",
    "predict",
    "predict_study",
    "privacy_audit",
    "compare_sites",
    "keys",
]

MOVES: dict[State, frozenset[State]] = {
    "queued": frozenset({"running", "cancelled"}),
    "running": frozenset({"succeeded", "failed", "cancelling", "queued"}),
    "cancelling": frozenset({"cancelled", "succeeded", "failed"}),
    "succeeded": frozenset(),
    "failed": frozenset({"queued"}),
    "cancelled": frozenset({"queued"}),
}
"""State -> states that may follow it. Only a person's retry leads out of `failed` and `cancelled`."""
TERMINAL: frozenset[State] = frozenset({"succeeded", "failed", "cancelled"})
ACTIVE: frozenset[State] = frozenset({"queued", "running", "cancelling"})
HELD: tuple[State, ...] = ("running", "cancelling")
"""States in which a worker holds the job."""
PAUSE = 5.0
"""Seconds that a crashed job rests before its next attempt, multiplied by the number of attempts so far."""


def submit(
    session: Session, *, kind: Kind, params: dict[str, Any], actor: str, key: str | None, body: Any, gpus: int = 0,
    run_id: str | None = None, checkpoint_id: str | None = None, queue_limit: int = 10_000,
) -> tuple[Job, bool]:  # fmt: skip
    """Queue a job; return the job and whether it is new.

    Args:
        session: in a write transaction.
        kind: kind of the job.
        params: parameters of this kind of job, as `job_plans` makes them.
        actor: name of who asks for it.
        key: Idempotency-Key; the same key from the same actor with the same body returns the job that it made before.
        body: the request that the key stands for, as data that JSON can hold.
        gpus: number of devices that the job takes.
        run_id: id of the run that the job belongs to.
        checkpoint_id: id of the checkpoint that the job starts from.
        queue_limit: number of queued jobs from which on a new one is refused.

    Raises:
        Refusal: `idempotency_key_reused` for the same key with another body; `queue_full`.
    """
    digest = _digest(body)
    if key is not None and (earlier := _job_with_key(session, actor, key, digest)):
        return earlier, False
    if queued(session) >= queue_limit:
        raise Refusal("queue_full", f"{queue_limit} jobs wait already; try again later", {"Retry-After": "60"})
    job = Job(
        kind=kind, params=params, created_by=actor, idempotency_key=key, body_digest=digest, gpus=gpus, run_id=run_id,
        checkpoint_id=checkpoint_id, rung_at=now(session),
    )  # fmt: skip
    try:
        with session.begin_nested():
            session.add(job)
    except IntegrityError:  # PostgreSQL: another process committed the same key meanwhile
        earlier = _job_with_key(session, actor, str(key), digest)
        if earlier is None:
            raise
        return earlier, False
    add_events(session, job.id, 0, [{"event": "queued"}])
    audit.record(session, actor, "job.submit", job.id, kind=kind)
    return job, True


def replayed(session: Session, actor: str, key: str, body: Any) -> Job | None:
    """Return the job that this Idempotency-Key made, or None. Raises Refusal `idempotency_key_reused` for another body."""
    return _job_with_key(session, actor, key, _digest(body))


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _job_with_key(session: Session, actor: str, key: str, digest: str) -> Job | None:
    earlier = session.scalars(select(Job).where(Job.created_by == actor, Job.idempotency_key == key)).first()
    if earlier is not None and earlier.body_digest != digest:
        raise Refusal("idempotency_key_reused", f"this Idempotency-Key made {earlier.id} from another body; use a new key")
    return earlier


def queued(session: Session) -> int:
    """Count the waiting jobs."""
    return session.scalar(select(func.count()).select_from(Job).where(Job.state == "queued")) or 0


def add_events(session: Session, job_id: str, attempt: int, events: Sequence[dict[str, Any]]) -> None:
    """Append job events, numbered on from the last one of the job."""
    last = session.scalar(update(Job).where(Job.id == job_id).values(events=Job.events + len(events)).returning(Job.events))
    first = int(last or 0) - len(events) + 1
    session.add_all(JobEvent(job_id=job_id, seq=first + i, attempt=attempt, data=data) for i, data in enumerate(events))
    session.flush()


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
        return end(session, job, "cancelled", actor, None, None)
    move(job, "cancelling")
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
    if job.kind == "keys":
        raise Refusal("conflict", f"{job_id} changed whom the site trusts, as it was then: ask for it anew")
    if job.kind == "predict_study":
        raise Refusal("conflict", f"{job_id} has ended, and its image is not kept; send the image again")
    audit.record(session, actor, "job.retry", job_id)
    moment = now(session)
    move(job, "queued")
    job.tries, job.queued_at, job.rung_at = 0, moment, moment
    job.finished_at = job.error = job.worker = job.progress = job.not_before = None
    session.flush()
    add_events(session, job_id, job.attempt, [{"event": "queued"}])
    return job


def locked(session: Session, job_id: str) -> Job:
    """Return a job's row, locked until the transaction ends. Raises Refusal `not_found`."""
    job = session.scalars(
        select(Job).where(Job.id == job_id).with_for_update().execution_options(populate_existing=True)
    ).first()
    if job is None:
        raise Refusal("not_found", f"there is no job {job_id}")
    return job


def rest(session: Session, job: Job) -> None:
    """Keep a job whose attempt crashed from its next one for a while: the longer, the more attempts it had."""
    job.not_before = now(session) + PAUSE * job.tries


def ready() -> ColumnElement[bool]:
    """Return the SQL condition that a waiting job does not rest after a crash."""
    return or_(Job.not_before.is_(None), passed(Job.not_before, Job.not_before - PAUSE * Job.tries))


def not_rung(session: Session, after: float, limit: int) -> list[str]:
    """Return the ids of the `limit` oldest jobs that no doorbell rang for in `after` seconds; record that one rings now."""
    conditions = (Job.state == "queued", ready(), or_(Job.rung_at.is_(None), not_(lately(Job.rung_at, after))))
    oldest = select(Job.id).where(*conditions).order_by(Job.queued_at, Job.id).limit(limit)
    return list(
        session.scalars(update(Job).where(*conditions, Job.id.in_(oldest)).values(rung_at=clock()).returning(Job.id))
    )


def end(
    session: Session, job: Job, state: State, actor: str, result: dict[str, Any] | None, error: dict[str, Any] | None
) -> Job:
    """Bring a locked job to a terminal state and free its devices; return the job."""
    move(job, state)
    free_devices(session, job)
    job.finished_at = now(session)
    if state == "succeeded" and job.progress and job.progress.get("steps"):
        left = {"eta_seconds": 0.0} if "eta_seconds" in job.progress else {}
        job.progress = {**job.progress, "step": job.progress["steps"], **left}  # reports on the way are seconds apart
    job.result, job.error, job.lease_until, job.leased_at = result, error, None, None
    session.flush()
    add_events(session, job.id, job.attempt, [{"event": state, **({"error": error} if error else {})}])
    audit.record(session, actor, f"job.{state}", job.id)
    artifacts.detach(session, uploaded(job.id))  # nothing of an image is kept when its job is done
    if state != "succeeded" and (bundle_id := job.params.get("import")):
        artifacts.detach(session, bundle_id)  # the file is swept in a day; until then a retry finds it
        audit.record(session, actor, "import.refuse", bundle_id, code=error["code"] if error else state)
    return job


def uploaded(job_id: str) -> str:
    """Return the owner of what was uploaded for a job alone: it is detached when the job ends, and no file of the job."""
    return f"upload-{job_id}"


def move(job: Job, state: State) -> None:
    """Set the state of a job. Raises Refusal `conflict` where it may not follow the present one."""
    if state not in MOVES[job.state]:  # type: ignore[index]
        raise Refusal("conflict", f"{job.id} is {job.state}; it cannot become {state}")
    job.state = state


def free_devices(session: Session, job: Job) -> None:
    """Free the devices that the job's attempts leased."""
    session.execute(
        update(DeviceLease).where(DeviceLease.job_id == job.id, DeviceLease.attempt <= job.attempt).values(until=0.0)
    )
