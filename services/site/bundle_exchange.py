"""Models that are handed on: an import from its receipt to the decision about it, an export when it was built.

Every function works in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.site import artifacts, audit, jobs
from services.site.artifacts import ArtifactStore
from services.site.checkpoint_header import read_header
from services.site.db import Bundle, Checkpoint, Job, Run, new_id, now
from services.site.errors import Refusal
from services.site.job_plans import need

Purpose = Literal["train", "evaluate"]
"""Of an import: to go on from it here, or only to score it."""
Shown = Literal["verifying", "refused", "quarantined", "accepted", "rejected"]
"""States of an import as people see them."""
Files = Mapping[str, tuple[str, int, str]]
"""Name -> digest, size in bytes, media type of stored bytes."""
MEDIA_TYPE = "application/vnd.relay.bundle"
FILE = "bundle.relay"
"""Name of the attachment that is the file itself."""
CHECKPOINT = "checkpoint.safetensors"
"""Name of the attachment that holds the networks of an import, until its checkpoint does."""
PRESENT = ("quarantined", "accepted")
"""States of an import whose model is here."""


def receive(
    session: Session, digest: str, size: int, *, purpose: Purpose, actor: str, key: str, queue_limit: int
) -> tuple[Bundle, bool]:
    """Take a stored file in and queue its verification; return the import and whether it is new.

    Args:
        session: in a write transaction.
        digest: of the file in the store.
        size: bytes of it.
        purpose: what it is for.
        actor: who brings it.
        key: Idempotency-Key; the same one by the same actor with the same file and purpose gives the import it made.
        queue_limit: queued jobs beyond which it is refused.

    Raises:
        Refusal: `idempotency_key_reused`, `queue_full`.
    """
    body = {"kind": "import", "digest": digest, "purpose": purpose}
    params = {"import": new_id("bundle"), "purpose": purpose}
    job, new = jobs.submit(session, kind="import", params=params, actor=actor, key=key, body=body, queue_limit=queue_limit)
    if not new:
        return need(session, Bundle, job.params["import"]), False
    row = Bundle(
        id=params["import"], direction="import", state="received", purpose=purpose, job_id=job.id, digest=digest, size=size,
        created_by=actor,
    )  # fmt: skip
    session.add(row)
    session.flush()
    artifacts.attach(session, row.id, FILE, digest, size, MEDIA_TYPE)
    audit.record(session, actor, "import.receive", row.id, digest=digest, size=size, purpose=purpose)
    session.refresh(row)
    return row, True


def imported(session: Session, purpose: str) -> list[dict[str, Any]]:
    """What was accepted for a purpose, as the verification wants to know it: {digest, run, hop, created_at}."""
    rows = select(Bundle).where(Bundle.direction == "import", Bundle.state == "accepted", Bundle.purpose == purpose)
    keys = ("digest", "run", "hop", "created_at")
    return [{key: (row.facts or {})[key] for key in keys} for row in session.scalars(rows.order_by(Bundle.id))]


def quarantine(session: Session, job: Job, facts: dict[str, Any], files: Files) -> Bundle:
    """A verified import waits for an operator.

    Args:
        session: in the transaction that ends the job.
        job: that verified it.
        facts: what its signed manifest says.
        files: what came out of it; `CHECKPOINT` among them.

    Raises:
        Refusal: `bundle_used`: the same model was brought before; `not_found` for a run that is not registered.
    """
    row = _locked(session, job.params["import"])
    run = need(session, Run, facts["run"])
    same = select(Bundle.id).where(
        Bundle.direction == "import", Bundle.state.in_(PRESENT), Bundle.content_digest == facts["digest"],
        Bundle.purpose == row.purpose,
    )  # fmt: skip
    if (before := session.scalars(same).first()) is not None:
        raise Refusal("bundle_used", f"this model was imported already, as {before}")
    try:
        with session.begin_nested():
            row.state, row.run_id, row.content_digest, row.facts = "quarantined", run.id, facts["digest"], facts
    except IntegrityError:  # PostgreSQL: another process verified the same one meanwhile
        raise Refusal("bundle_used", "this model was imported already, a moment ago") from None
    artifacts.attach(session, row.id, FILE, row.digest, row.size, MEDIA_TYPE)  # a retried job's was let go
    _attach(session, row, files)
    audit.record(session, job.created_by, "import.quarantine", row.id, **_who(facts))
    return row


def built(session: Session, job: Job, facts: dict[str, Any], files: Files) -> Bundle:
    """An export lies ready to be fetched.

    Args:
        session: in the transaction that ends the job.
        job: that built it.
        facts: what its signed manifest says.
        files: `FILE`, and what the next export needs of it.
    """
    digest, size, _ = files[FILE]
    row = Bundle(
        direction="export", state="built", run_id=job.run_id, checkpoint_id=job.checkpoint_id, job_id=job.id, digest=digest,
        size=size, content_digest=facts["digest"], facts=facts, created_by=job.created_by,
    )  # fmt: skip
    session.add(row)
    session.flush()
    _attach(session, row, files)
    who = {**_who(facts), "checkpoint": row.checkpoint_id, "recipient": facts["recipient"], "file": digest}
    audit.record(session, job.created_by, "export.build", row.id, **who)
    return row


def accept(session: Session, store: ArtifactStore, bundle_id: str, actor: str) -> Bundle:
    """Make a quarantined import a checkpoint, which the next training here starts from.

    Raises:
        Refusal: `not_found`; `conflict` where it is not quarantined; `bundle_stale` where a newer one of the same run was
            accepted while it waited.
        CheckpointError: its stored bytes cannot be read.
    """
    row = _quarantined(session, bundle_id)
    facts = row.facts or {}
    if row.purpose == "train":
        for other in imported(session, "train"):
            later = (other["hop"], other["created_at"]) >= (facts["hop"], facts["created_at"])
            if other["run"] == row.run_id and later:
                raise Refusal("bundle_stale", f"hop {other['hop']} of this run, which is newer, was accepted meanwhile")
    file = artifacts.attached(session, row.id)[CHECKPOINT]
    header = read_header(store.path(file.digest))
    checkpoint = Checkpoint(
        run_id=row.run_id, job_id=row.job_id, parent_id=None, digest=file.digest, task_id=int(header.meta["task_id"]),
        site=str(header.meta["site"]), step=int(header.meta["step"]), content_digest=header.digest,
    )  # fmt: skip
    session.add(checkpoint)
    session.flush()
    artifacts.detach(session, row.id, CHECKPOINT)  # from now on the checkpoint's
    row.checkpoint_id = checkpoint.id
    _decide(session, row, "accepted", actor)
    audit.record(session, actor, "import.accept", row.id, **_who(facts), checkpoint=checkpoint.id)
    return row


def reject(session: Session, bundle_id: str, actor: str, reason: str) -> Bundle:
    """Let a quarantined import go; what its manifest said stays.

    Raises:
        Refusal: `not_found`; `conflict` where it is not quarantined.
    """
    row = _quarantined(session, bundle_id)
    row.reason = reason
    _decide(session, row, "rejected", actor)
    artifacts.detach(session, row.id)
    audit.record(session, actor, "import.reject", row.id, **_who(row.facts or {}), reason=reason)
    return row


def _decide(session: Session, row: Bundle, state: str, actor: str) -> None:
    row.state, row.decided_by, row.decided_at = state, actor, now(session)
    session.flush()
    session.refresh(row)


def _attach(session: Session, row: Bundle, files: Files) -> None:
    for name, stored in files.items():
        artifacts.attach(session, row.id, name, *stored)


def _who(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Whose model it is, for the audit log."""
    return {"signer": facts["signer"]["fingerprint"], "digest": facts["digest"], "run": facts["run"], "hop": facts["hop"]}


def _quarantined(session: Session, bundle_id: str) -> Bundle:
    row = _locked(session, bundle_id)
    if row.state != "quarantined":
        raise Refusal("conflict", f"{row.id} is {row.shown}; only a quarantined import can be accepted or rejected")
    return row


def _locked(session: Session, bundle_id: str) -> Bundle:
    row = session.get(Bundle, bundle_id, with_for_update=True)
    if row is None or row.direction != "import":
        raise Refusal("not_found", f"there is no import {bundle_id}")
    return row
