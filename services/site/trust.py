"""Ask whom the site trusts: the roster of its folder of keys, which the workers and `relay keys` copy into the database.

The API has no folder of keys, so it goes by the copy; a worker goes by the folder itself. A bundle whose signer, or the
signer of any hop before, is trusted no more is neither accepted nor trained on, exported or served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from relay_core.bundle import day, spoken_fingerprint
from services.site import audit, jobs
from services.site.db import Bundle, Checkpoint, Database, Job, RosterCopy, now
from services.site.errors import Refusal

Entries = Sequence[Mapping[str, Any]]
"""The roster: {fingerprint, name, run, added_at, revoked_at} of each entry."""
GO_ON_FROM = ("train", "export", "export_onnx", "predict")
"""Kinds of jobs that use a model as one that may be used; to score it or to look at it decides nothing."""
_LOCK = 0x74727573  # "trus": PostgreSQL's advisory lock of the copy, so that an older roster never replaces a newer one


def read(keys: Path) -> list[dict[str, Any]]:
    """Read the roster of a folder of keys, the site's own key included. Raises BundleError `bundle_damaged`."""
    from relay_core.bundle import KeyFolder  # it needs cryptography, which the API's container does not have

    return [
        {"fingerprint": entry.card.fingerprint, "name": entry.card.name, "run": entry.run, "added_at": entry.added_at,
         "revoked_at": entry.revoked_at}
        for entry in KeyFolder(keys).roster.entries
    ]  # fmt: skip


def confirm(database: Database, keys: Path, actor: str) -> None:
    """Copy the roster into the database, as `changing` does after a change. Raises BundleError as that."""
    with changing(database, keys, actor):
        pass


@contextmanager
def changing(database: Database, keys: Path, actor: str) -> Iterator[None]:
    """Let the block change the folder of keys, then copy its roster into the database, before any worker does.

    The audit log gets a row for each key that is new or changed, with `actor` as who did it.

    Jobs that go on from a model of a key that is trusted no more are cancelled: a training stops, and leaves a checkpoint.

    Raises:
        BundleError: the roster cannot be read; the copy stays unconfirmed, and nothing is accepted by it.
        Refusal: `volume_away`, with the same end.
    """
    with database.write() as session:
        if not database.sqlite:
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        yield
        require_keys(session, keys)
        entries = read(keys)  # under the lock: whoever writes later has read later
        copy = session.get(RosterCopy, 1)
        if copy is None:
            copy = RosterCopy(id=1, entries=[])
            session.add(copy)
        before, copy.entries, copy.confirmed_at = copy.entries, entries, now(session)
        for action, key, detail in _changes(before, entries):
            audit.record(session, actor, action, key, **detail)
    if any(entry["revoked_at"] is not None for entry in entries):
        _cancel_revoked(database, actor)


def require_keys(session: Session, keys: Path) -> None:
    """Refuse an empty folder of keys where the site has keys: its volume is away, and nobody became a stranger by that.

    Raises:
        Refusal: `volume_away`.
    """
    copy = session.get(RosterCopy, 1)
    if copy is not None and copy.entries and not any((keys / name).is_file() for name in ("card.json", "roster.json")):
        raise Refusal("volume_away", "the volume `keys` is away: it holds neither card nor roster; mount it")


def _changes(before: Entries, after: Entries) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (action, fingerprint, detail) for each key whose entries differ."""
    changes = []
    for key in sorted({entry["fingerprint"] for entry in (*before, *after)}):
        old, new = ([entry for entry in entries if entry["fingerprint"] == key] for entries in (before, after))
        if old == new:
            continue
        if not new:
            action = "keys.forget"
        elif any(entry["revoked_at"] is not None for entry in new):
            action = "keys.revoke"
        else:
            action = "keys.trust" if any(entry["added_at"] for entry in new) else "keys.create"  # the site's own
        changes.append((action, key, {"name": (new or old)[0]["name"], "runs": [entry["run"] for entry in new]}))
    return changes


def _cancel_revoked(database: Database, actor: str) -> None:
    conditions = Job.state.in_(("queued", "running")), Job.kind.in_(GO_ON_FROM), Job.checkpoint_id.is_not(None)
    with database.read() as session:
        active = session.scalars(select(Job).where(*conditions)).all()
        revoked = {job.id: str(refusal) for job in active if (refusal := _refusal(session, job)) is not None}
    for job_id, why in revoked.items():
        with database.write() as session:  # one each: no lock of a job is waited for while the audit log is locked
            job = jobs.locked(session, job_id)
            if job.state in jobs.ACTIVE:
                jobs.add_events(session, job_id, job.attempt, [{"event": "warning", "site": "", "message": why}])
                jobs.cancel(session, job_id, actor)


def _refusal(session: Session, job: Job) -> Refusal | None:
    try:
        require_job(session, job)
    except Refusal as refusal:
        return refusal if refusal.code == "signer_revoked" else None
    return None


def require_bundle(session: Session, row: Bundle, lately: float) -> None:
    """Refuse to accept an import that a key signed which is trusted no more.

    Args:
        session: the database session to read with.
        row: the import, verified.
        lately: seconds within which a worker must have confirmed the roster.

    Raises:
        Refusal: `signer_revoked`, `signer_unknown`; `not_ready` where no worker has confirmed the roster lately.
    """
    copy, moment = session.get(RosterCopy, 1), now(session)
    if copy is None or abs(moment - copy.confirmed_at) > lately:
        raise Refusal(
            "not_ready", f"no worker has said within {lately:g} s whom this site trusts: start the worker, then accept again"
        )
    _require(copy.entries, row)


def require_line(session: Session, checkpoint_id: str | None, keys: Path | None = None) -> None:
    """Refuse to go on from a checkpoint that came in, it or one before it, in a bundle whose signers are trusted no more.

    Args:
        session: the database session to read with.
        checkpoint_id: id of the checkpoint; a row that is gone names nothing to refuse.
        keys: the folder of keys; None: go by the database's copy of its roster.

    Raises:
        Refusal: `signer_revoked`, `signer_unknown`.
        BundleError: the roster cannot be read.
    """
    imported = _imports_before(session, checkpoint_id)
    if not imported:
        return
    copy = session.get(RosterCopy, 1)
    if keys is not None:
        require_keys(session, keys)
    entries: Entries = read(keys) if keys is not None else copy.entries if copy is not None else []
    for row in imported:
        _require(entries, row)


def require_job(session: Session, job: Job, keys: Path | None = None) -> None:
    """Do what `require_line` does for the checkpoint that a job goes on from, where it does."""
    if job.kind in GO_ON_FROM:
        require_line(session, job.checkpoint_id, keys)


def _imports_before(session: Session, checkpoint_id: str | None) -> list[Bundle]:
    imported: list[Bundle] = []
    while checkpoint_id is not None:
        conditions = Bundle.checkpoint_id == checkpoint_id, Bundle.direction == "import", Bundle.state == "accepted"
        imported += session.scalars(select(Bundle).where(*conditions)).all()
        checkpoint_id = session.scalar(select(Checkpoint.parent_id).where(Checkpoint.id == checkpoint_id))
    return imported


def _require(entries: Entries, row: Bundle) -> None:
    facts = row.facts or {}
    signers = {hop["fingerprint"]: hop["signer"] for hop in facts["history"]}
    signers[facts["signer"]["fingerprint"]] = facts["signer"]["name"]
    for key, name in signers.items():
        found = [entry for entry in entries if entry["fingerprint"] == key]
        who = f"{name}, whose key {spoken_fingerprint(key)} signed {row.id} or a hop before it,"
        revoked = next((entry["revoked_at"] for entry in found if entry["revoked_at"] is not None), None)
        if revoked is not None:
            raise Refusal(
                "signer_revoked",
                f"{who} was revoked here on {day(revoked)}: reject the import, and go on from a checkpoint without it; "
                "where the key may be trusted again: relay keys trust CARD",
            )
        if not any(entry["run"] in (None, row.run_id) for entry in found):
            raise Refusal(
                "signer_unknown",
                f"{who} is not trusted here{' for this run' if found else ''}; compare its fingerprint by telephone, then: "
                "relay keys trust CARD",
            )
