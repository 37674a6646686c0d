"""Let workers hold jobs: by a lease that a worker renews, and a fencing token that each of its writes carries.

A worker that lost its lease changes nothing. Every function works in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import func, not_, or_, select, update
from sqlalchemy.orm import Session

from services.site.db import DeviceLease, Job, clock, now, passed
from services.site.errors import Refusal
from services.site.jobs import HELD, add_events, end, free_devices, move, ready, rest

UNPUNISHED = ("worker_lost", "stopped")
"""Error codes of attempts that ended by no fault of the job: its next attempt may begin at once."""


class LeaseLost(Refusal):
    """Another attempt holds the job now; this one's write changed nothing."""

    def __init__(self, claim: Claim) -> None:
        super().__init__("lease_lost", f"{claim.job_id} is no longer attempt {claim.attempt}'s")


@dataclass(frozen=True)
class Claim:
    """Describes a worker's hold on a job, and on the devices that it leased for it."""

    job_id: str
    attempt: int
    """The fencing token: the number of the attempt, which rises with every claim of the job."""
    worker: str
    host: str
    devices: tuple[str, ...]


def claim(
    session: Session, *, worker: str, host: str, devices: Sequence[str], lease: float, job_id: str | None = None,
    key_changes: bool = False,
) -> Claim | None:  # fmt: skip
    """Take the oldest waiting job that fits the worker's free devices; return None where there is none.

    A job that needs devices takes that many of the worker's free ones; where fewer are free it stays in the queue, and
    a later job that needs none may go first.

    Args:
        session: in a write transaction.
        worker: id of the worker.
        host: name of the machine that has the devices.
        devices: names of the devices that the worker may use.
        lease: seconds until another worker may take the job, unless the lease is renewed.
        job_id: the only job to take; default: any.
        key_changes: whether to take a change of keys, and nothing else; otherwise these are left out.
    """
    moment = now(session)
    leased_at = func.coalesce(DeviceLease.leased_at, 0.0)  # NOT of a comparison with NULL would not be true
    leased = select(DeviceLease.device).where(
        DeviceLease.host == host, not_(passed(DeviceLease.until, leased_at)), DeviceLease.device.in_(devices)
    )
    if session.get_bind().dialect.name == "postgresql":  # two workers of one host must not take the same device
        session.execute(select(func.pg_advisory_xact_lock(func.hashtext(host))))
    taken_devices = set(session.scalars(leased))
    free = [device for device in devices if device not in taken_devices]
    of_kind = Job.kind == "keys" if key_changes else Job.kind != "keys"
    candidates = select(Job).where(Job.state == "queued", of_kind, Job.gpus <= len(free), ready())
    candidates = candidates.order_by(Job.queued_at, Job.id).limit(1)
    if job_id is not None:
        candidates = candidates.where(Job.id == job_id)
    job = session.scalars(candidates.with_for_update(skip_locked=True)).first()
    if job is None:
        return None
    attempt = session.scalar(
        update(Job)
        .where(Job.id == job.id, Job.state == "queued")
        .values(
            state="running", attempt=Job.attempt + 1, tries=Job.tries + 1, worker=worker, lease_until=moment + lease,
            leased_at=moment,
            started_at=func.coalesce(Job.started_at, moment), progress=None,
        )
        .returning(Job.attempt)
    )  # fmt: skip
    if attempt is None:
        return None
    new_claim = Claim(job.id, attempt, worker, host, tuple(free[: job.gpus]))
    for device in new_claim.devices:
        session.merge(
            DeviceLease(host=host, device=device, job_id=job.id, attempt=attempt, until=moment + lease, leased_at=moment)
        )
    add_events(session, job.id, attempt, [{"event": "claimed", "worker": worker, "devices": list(new_claim.devices)}])
    return new_claim


def held(session: Session, claim: Claim, lease: float | None = None, **values: Any) -> Job:
    """Write to a job that `claim` holds, renewing its lease by `lease` seconds where given; return the row.

    Raises:
        LeaseLost: the claim no longer holds the job, or one of its devices: the transaction must be rolled back.
    """
    if lease is not None:
        values |= {"lease_until": clock() + lease, "leased_at": clock()}
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
        renewed = session.scalars(
            _update_device_leases(claim).values(until=clock() + lease, leased_at=clock()).returning(DeviceLease.device)
        ).all()
        if len(renewed) < len(claim.devices):
            raise LeaseLost(claim)  # another job has its device
    return job


def _update_device_leases(claim: Claim) -> Any:
    return update(DeviceLease).where(DeviceLease.job_id == claim.job_id, DeviceLease.attempt == claim.attempt)


def finish(
    session: Session, claim: Claim, state: Literal["succeeded", "failed", "cancelled"], *,
    result: dict[str, Any] | None = None, error: dict[str, Any] | None = None,
) -> Job:  # fmt: skip
    """End a job that `claim` holds. A job that succeeds while it is being cancelled has succeeded: the work is done.

    Raises:
        LeaseLost: the claim no longer holds the job.
    """
    job = held(session, claim)
    return end(session, job, state, f"worker {claim.worker}", result, error)


def requeue(session: Session, job: Job, error: dict[str, Any], max_tries: int) -> Job:
    """Put a job whose attempt ended back into the queue, to resume from its newest checkpoint.

    A job that was being cancelled ends as cancelled; one that had `max_tries` attempts ends as failed.

    Args:
        session: in a write transaction.
        job: a job in a state in which a worker holds it.
        error: {code, message} of what ended the attempt.
        max_tries: number of attempts after which the job is given up.
    """
    free_devices(session, job)
    if job.state == "cancelling":
        return end(session, job, "cancelled", "reconciler", None, None)
    if job.tries >= max_tries:
        text = f"{error['message']}; given up after {job.tries} attempts"
        return end(session, job, "failed", "reconciler", None, {**error, "message": text})
    move(job, "queued")
    job.worker, job.lease_until, job.leased_at, job.rung_at, job.progress = None, None, None, None, None
    if error["code"] not in UNPUNISHED:
        rest(session, job)
    session.flush()
    add_events(session, job.id, job.attempt, [{"event": "requeued", **error}])
    return job


def give_back(session: Session, claim: Claim, why: str, code: str = "stopped") -> Job:
    """Hand a job back that ended by no fault of its own: the attempt does not count, and the job resumes elsewhere.

    Raises:
        LeaseLost: the claim no longer holds the job.
    """
    job = held(session, claim)
    job.tries -= 1
    return requeue(session, job, {"code": code, "message": why}, max_tries=job.tries + 1)


def expire(session: Session, max_tries: int) -> list[Job]:
    """Take the jobs whose lease ran out from their workers; return these jobs."""
    expired = session.scalars(
        select(Job)
        .where(Job.state.in_(HELD), or_(Job.lease_until.is_(None), passed(Job.lease_until, Job.leased_at)))
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    ).all()
    error = {"code": "worker_lost", "message": "the worker was not heard of until its lease ran out"}
    return [requeue(session, job, error, max_tries) for job in expired]
