"""Record hand-offs: an import from its receipt to the decision about it, and an export once it is built.

Every function works in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.site import artifacts, audit, jobs, trust
from services.site.artifacts import ArtifactStore
from services.site.checkpoint_header import read_header
from services.site.db import Bundle, Checkpoint, Job, Run, new_id, now
from services.site.errors import Refusal
from services.site.job_plans import need

Purpose = Literal["train", "evaluate"]
"""What an import is for: to train on from it here, or only to score it."""
Shown = Literal["verifying", "refused", "quarantined", "accepted", "rejected"]
"""States of an import as people see them."""
Files = Mapping[str, tuple[str, int, str]]
"""Name of an attachment -> digest, size in bytes and media type of its stored bytes."""
MEDIA_TYPE = "application/vnd.relay.bundle"
FILE = "bundle.relay"
"""Name of the attachment that is the bundle file itself."""
CHECKPOINT = "checkpoint.safetensors"
"""Name of the attachment that is the checkpoint file of an import, until a checkpoint row holds it."""
PRESENT = ("quarantined", "accepted")
"""States of an import whose model is at this site."""


def receive(
    session: Session, digest: str, size: int, *, purpose: Purpose, actor: str, key: str, queue_limit: int
) -> tuple[Bundle, bool]:
    """Make an import of a stored bundle file and queue its verification; return the import and whether it is new.

    Args:
        session: in a write transaction.
        digest: SHA-256 of the file in the store.
        size: size of the file in bytes.
        purpose: what the import is for.
        actor: name of who brings it.
        key: Idempotency-Key; the same key from the same actor with the same file and purpose returns the import it made.
        queue_limit: number of queued jobs from which on an import is refused.

    Raises:
        Refusal: `idempotency_key_reused` for the same key with another file or purpose; `queue_full`.
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
    """Return {digest, run, hop, created_at} of each import accepted for a purpose, which a verification needs to know."""
    rows = select(Bundle).where(Bundle.direction == "import", Bundle.state == "accepted", Bundle.purpose == purpose)
    keys = ("digest", "run", "hop", "created_at")
    return [{key: (row.facts or {})[key] for key in keys} for row in session.scalars(rows.order_by(Bundle.id))]


def quarantine(session: Session, job: Job, facts: dict[str, Any], files: Files) -> Bundle:
    """Put a verified import into quarantine, where it waits for an operator's decision.

    Args:
        session: in the transaction that ends the job.
        job: the job that verified the import.
        facts: contents of the bundle's signed manifest.
        files: the files that were unpacked from the bundle; `CHECKPOINT` among them.

    Raises:
        Refusal: `bundle_used` where the same model was imported before; `not_found` for a run that is not registered.
    """
    row = _locked_import(session, job.params["import"])
    run = need(session, Run, facts["run"])
    duplicates = select(Bundle.id).where(
        Bundle.direction == "import", Bundle.state.in_(PRESENT), Bundle.content_digest == facts["digest"],
        Bundle.purpose == row.purpose,
    )  # fmt: skip
    if (duplicate_id := session.scalars(duplicates).first()) is not None:
        raise Refusal("bundle_used", f"this model was imported already, as {duplicate_id}")
    try:
        with session.begin_nested():
            row.state, row.run_id, row.content_digest, row.facts = "quarantined", run.id, facts["digest"], facts
    except IntegrityError:  # PostgreSQL: another process verified the same model meanwhile
        raise Refusal("bundle_used", "this model was imported already, a moment ago") from None
    artifacts.attach(session, row.id, FILE, row.digest, row.size, MEDIA_TYPE)  # an attempt that failed detached it
    _attach_files(session, row, files)
    audit.record(session, job.created_by, "import.quarantine", row.id, **_audit_details(facts))
    return row


def built(session: Session, job: Job, facts: dict[str, Any], files: Files) -> Bundle:
    """Record an export that was built, ready to be fetched.

    Args:
        session: in the transaction that ends the job.
        job: the job that built the bundle.
        facts: contents of the bundle's signed manifest.
        files: `FILE`, and the files that the next export needs of this one.
    """
    digest, size, _ = files[FILE]
    row = Bundle(
        direction="export", state="built", run_id=job.run_id, checkpoint_id=job.checkpoint_id, job_id=job.id, digest=digest,
        size=size, content_digest=facts["digest"], facts=facts, created_by=job.created_by,
    )  # fmt: skip
    session.add(row)
    session.flush()
    _attach_files(session, row, files)
    details = {**_audit_details(facts), "checkpoint": row.checkpoint_id, "recipient": facts["recipient"], "file": digest}
    audit.record(session, job.created_by, "export.build", row.id, **details)
    return row


def accept(session: Session, store: ArtifactStore, bundle_id: str, actor: str, lately: float) -> Bundle:
    """Make a checkpoint of a quarantined import, for the next training here to start from.

    Args:
        session: in a write transaction.
        store: the store that holds its bytes.
        bundle_id: id of the import.
        actor: name of who accepts it.
        lately: seconds within which a worker must have confirmed whom the site trusts.

    Raises:
        Refusal: `not_found`; `conflict` where it is not quarantined; `bundle_stale` where a newer one of the same run was
            accepted while it waited; `signer_revoked` or `signer_unknown` where a signer is trusted no more; `not_ready`
            where no worker has confirmed lately whom the site trusts.
        CheckpointError: its stored bytes cannot be read.
    """
    row = _locked_quarantined(session, bundle_id)
    facts = row.facts or {}
    trust.require_bundle(session, row, lately)
    if row.purpose == "train":
        for accepted in imported(session, "train"):
            is_newer = (accepted["hop"], accepted["created_at"]) >= (facts["hop"], facts["created_at"])
            if accepted["run"] == row.run_id and is_newer:
                raise Refusal("bundle_stale", f"hop {accepted['hop']} of this run, which is newer, was accepted meanwhile")
    file = artifacts.attached(session, row.id)[CHECKPOINT]
    header = read_header(store.path(file.digest))
    checkpoint = Checkpoint(
        run_id=row.run_id, job_id=row.job_id, parent_id=None, digest=file.digest, task_id=int(header.meta["task_id"]),
        site=str(header.meta["site"]), step=int(header.meta["step"]), steps=int(header.meta["steps"]),
        content_digest=header.digest,
    )  # fmt: skip
    session.add(checkpoint)
    session.flush()
    artifacts.detach(session, row.id, CHECKPOINT)  # from now on the checkpoint row needs these bytes
    row.checkpoint_id = checkpoint.id
    _decide(session, row, "accepted", actor)
    audit.record(session, actor, "import.accept", row.id, **_audit_details(facts), checkpoint=checkpoint.id)
    return row


def reject(session: Session, bundle_id: str, actor: str, reason: str) -> Bundle:
    """Reject a quarantined import and release its files; the contents of its manifest stay in its row.

    Raises:
        Refusal: `not_found`; `conflict` where it is not quarantined.
    """
    row = _locked_quarantined(session, bundle_id)
    row.reason = reason
    _decide(session, row, "rejected", actor)
    artifacts.detach(session, row.id)
    audit.record(session, actor, "import.reject", row.id, **_audit_details(row.facts or {}), reason=reason)
    return row


def _decide(session: Session, row: Bundle, state: str, actor: str) -> None:
    row.state, row.decided_by, row.decided_at = state, actor, now(session)
    session.flush()
    session.refresh(row)


def _attach_files(session: Session, row: Bundle, files: Files) -> None:
    for name, stored in files.items():
        artifacts.attach(session, row.id, name, *stored)


def _audit_details(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return signer, digest, run and hop of a bundle, for the audit log."""
    return {"signer": facts["signer"]["fingerprint"], "digest": facts["digest"], "run": facts["run"], "hop": facts["hop"]}


def _locked_quarantined(session: Session, bundle_id: str) -> Bundle:
    row = _locked_import(session, bundle_id)
    if row.state != "quarantined":
        raise Refusal("conflict", f"{row.id} is {row.shown}; only a quarantined import can be accepted or rejected")
    return row


def _locked_import(session: Session, bundle_id: str) -> Bundle:
    row = session.get(Bundle, bundle_id, with_for_update=True)
    if row is None or row.direction != "import":
        raise Refusal("not_found", f"there is no import {bundle_id}")
    return row
