"""Sweep the store: what nobody has needed for `GRACE` seconds goes, and goes into the trash first.

A database that lost rows (an older one was restored) does not need what is dearest. So time counts from when a file was
first *seen* unneeded, as the sweeps add it up, whatever the clock does; files that this database never named go to the trash
for `RELAY_TRASH_DAYS`; and where the database is older than the artifacts, nothing goes before an administrator has
confirmed it (`unconfirmed`, `confirm`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ColumnElement, delete, select, text
from sqlalchemy.orm import Session

from services.site import audit, marks, volumes
from services.site.artifacts import ArtifactStore
from services.site.db import Artifact, Attachment, AuditRecord, Checkpoint, Database, Model, Unneeded, now
from services.site.errors import Refusal
from services.site.settings import Settings

log = logging.getLogger(__name__)

GRACE = 86400.0
"""Seconds that unneeded bytes stay, so that those of a job whose row is not committed yet are not lost."""
LONGEST = 7200.0
"""The most seconds that lie between two sweeps: more is a clock that was set, or a site that was off."""
_LOCK = 0x7377656570  # "sweep": PostgreSQL's advisory lock of the one who sweeps


@dataclass(frozen=True)
class Unused:
    """Describes a file of the store that no row needs."""

    name: str
    """Path below the store; of a file in the trash `trash/DIGEST`."""
    size: int
    """Size in bytes."""
    age: float
    """Seconds since it was first seen so, or moved to the trash."""


def unconfirmed(session: Session, store: ArtifactStore) -> str | None:
    """Return why nothing may be deleted before an administrator has confirmed it; None where nothing is in the way."""
    known = marks.read(store.folder / marks.KNOWN)
    if known is None:
        return None
    if "restored" in known:
        return "a backup was restored"
    seq = known.get("seq")
    if seq == 0:
        return None
    found = session.scalar(select(AuditRecord.hash).where(AuditRecord.seq == seq)) if isinstance(seq, int) else None
    if found is not None and found == known.get("hash"):
        return None
    return "the database is older than the artifacts: it lacks what the site had recorded"


def remember(database: Database, settings: Settings) -> None:
    """Note beside the artifacts how far the database has come, so that an older one is noticed."""
    store = ArtifactStore(settings.artifact_folder)
    if volumes.away(database, settings, "artifacts"):
        return
    with database.read() as session:
        if unconfirmed(session, store) is None:
            _note_head(session, store)


def _note_head(session: Session, store: ArtifactStore) -> None:
    last = session.scalars(select(AuditRecord).order_by(AuditRecord.seq.desc()).limit(1)).first()
    head = {"seq": last.seq if last else 0, "hash": last.hash if last else audit.GENESIS}
    path, known = store.folder / marks.KNOWN, marks.read(store.folder / marks.KNOWN)
    if known is None or known.get("hash") != head["hash"]:
        marks.write(path, **head)


def sweep(database: Database, settings: Settings, *, grace: float = GRACE) -> list[str]:
    """Let go of what no row has needed for long; return the names of the files that were moved or deleted.

    Args:
        database: the site's database.
        settings: the site's settings.
        grace: seconds until an unneeded file goes.
    """
    store, keep = ArtifactStore(settings.artifact_folder), settings.trash_days * 86400.0
    for problem in volumes.away(database, settings, "artifacts").values():
        log.warning("nothing is swept: %s", problem)
        return []
    files = _files(store)  # before the rows are read: a file that comes later is not seen
    with database.write() as session:
        if session.get_bind().dialect.name == "postgresql":
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        reason = unconfirmed(session, store)
        if reason is not None:
            log.warning("nothing is swept: %s; look at relay artifacts", reason)
            return []
        dropped = session.scalars(delete(Artifact).where(*_not_named()).returning(Artifact.digest)).all()
        needed = set(session.scalars(select(Artifact.digest)))
        rows = _count(session, {name: time for name, time in files.items() if _digest(name) not in needed}, dropped)
    for digest in [name.removeprefix("trash/") for name in files if name.startswith("trash/")]:
        if digest in needed:
            store.take_back(digest)
    due = [row for row in rows if row.age >= (keep if row.name.startswith("trash/") else grace)]
    return [row.name for row in due if _let_go(store, row)]


def _not_named() -> list[ColumnElement[bool]]:
    return [Artifact.digest.not_in(select(column)) for column in (Attachment.digest, Checkpoint.digest, Model.digest)]


def _files(store: ArtifactStore) -> dict[str, int]:
    """Return path below the store -> modification time in ns of each of its files."""
    found = {}
    for pattern in ("sha256/??/*", "staging/*", "trash/*"):
        for path in store.folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                found[path.relative_to(store.folder).as_posix()] = path.stat().st_mtime_ns
    return found


def _digest(name: str) -> str:
    return name.removeprefix("sha256/").removeprefix("trash/").replace("/", "")


def _count(session: Session, unneeded: dict[str, int], dropped: Iterable[str]) -> list[Unneeded]:
    """Add the time since the last sweep to the age of each file that is still unneeded; begin with those that are new."""
    moment, decided = now(session), set(dropped)
    rows = {row.name: row for row in session.scalars(select(Unneeded))}
    for name in rows.keys() - unneeded.keys():
        session.delete(rows.pop(name))
    for name, time in unneeded.items():
        row = rows.get(name)
        if row is None:
            rows[name] = row = Unneeded(name=name, mtime_ns=time, let_go=_digest(name) in decided, age=0.0, seen_at=moment)
            session.add(row)
        elif row.mtime_ns != time:  # the same bytes came again: somebody is about to need them
            row.mtime_ns, row.age, row.let_go = time, 0.0, False
        else:
            row.age += min(max(moment - row.seen_at, 0.0), LONGEST)
        row.seen_at = moment
    return list(rows.values())


def _let_go(store: ArtifactStore, row: Unneeded) -> bool:
    """Move a file to the trash, or delete one that was there long enough or that this database let go itself."""
    path = store.folder / row.name
    try:
        if path.stat().st_mtime_ns != row.mtime_ns:
            return False
        if row.name.startswith("sha256/") and not row.let_go:
            target = store.in_trash(_digest(row.name))
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
        else:
            path.unlink()
    except FileNotFoundError:
        return False
    return True


def unused(database: Database, store: ArtifactStore) -> list[Unused]:
    """List the files that no row needs, the oldest first, as the last sweep saw them."""
    found = []
    with database.read() as session:
        for row in session.scalars(select(Unneeded).order_by(Unneeded.age.desc(), Unneeded.name)):
            with contextlib.suppress(FileNotFoundError):
                found.append(Unused(row.name, (store.folder / row.name).stat().st_size, row.age))
    seen = {entry.name for entry in found}
    for path in sorted(store.folder.glob("trash/*")):
        if f"trash/{path.name}" not in seen:
            found.append(Unused(f"trash/{path.name}", path.stat().st_size, 0.0))
    return found


def missing(session: Session, store: ArtifactStore) -> list[str]:
    """Return the digests that rows need and the store does not have."""
    unneeded = select(Artifact.digest).where(*_not_named())
    digests = session.scalars(select(Artifact.digest).where(Artifact.digest.not_in(unneeded)).order_by(Artifact.digest))
    return [digest for digest in digests if not store.path(digest).is_file() and not store.in_trash(digest).is_file()]


def restore(database: Database, store: ArtifactStore, actor: str, digests: Sequence[str] = ()) -> list[str]:
    """Move files from the trash back into the store, all or those named by a digest or its beginning; return their digests.

    Raises:
        Refusal: `not_found` where nothing in the trash, or more than one file, has such a digest.
    """
    store.require_mounted()
    present = sorted(path.name for path in store.folder.glob("trash/*"))
    chosen = [_the_one(present, digest) for digest in digests] if digests else present
    with database.write() as session:
        for digest in chosen:
            audit.record(session, actor, "artifacts.restore", digest)
    for digest in chosen:
        store.take_back(digest)
    return chosen


def _the_one(present: Sequence[str], beginning: str) -> str:
    found = [digest for digest in present if digest.startswith(beginning.removeprefix("trash/"))]
    if len(found) != 1:
        raise Refusal("not_found", f"{len(found)} files in the trash have a digest that begins with {beginning}")
    return found[0]


def empty(database: Database, store: ArtifactStore, actor: str) -> tuple[int, int]:
    """Delete for good what lies in the trash and no row needs; return the number of files and of bytes.

    Raises:
        Refusal: `restore_unconfirmed`.
    """
    store.require_mounted()
    with database.write() as session:
        reason = unconfirmed(session, store)
        if reason is not None:
            raise Refusal("restore_unconfirmed", f"{reason}; look at relay artifacts, then: relay artifacts confirm")
        needed = set(session.scalars(select(Artifact.digest)))
        doomed = [path for path in sorted(store.folder.glob("trash/*")) if path.name not in needed]
        size = sum(path.stat().st_size for path in doomed)
        digests = [path.name for path in doomed]
        audit.record(session, actor, "artifacts.empty", "trash", files=len(doomed), bytes=size, digests=digests)
    for path in doomed:
        path.unlink(missing_ok=True)
    return len(doomed), size


def confirm(database: Database, settings: Settings, actor: str, *, adopt: bool = False) -> list[str]:
    """Take the database and the volumes as they are now: from now on the sweep goes on, and time begins anew for all files.

    Args:
        database: the site's database.
        settings: the site's settings.
        actor: who confirms.
        adopt: whether volumes that lack the mark, or have another site's, are this site's from now on.

    Returns:
        The names of the volumes that were adopted.

    Raises:
        Refusal: `volume_away` where a volume is not there and `adopt` does not say that it is the right one.
    """
    store = ArtifactStore(settings.artifact_folder)
    problems = volumes.away(database, settings, *volumes.WRITTEN)
    if problems and not adopt:
        raise Refusal("volume_away", "; ".join(problems.values()))
    with database.write() as session:
        reason = unconfirmed(session, store)
        for name in problems:
            volumes.adopt(session, settings, name)
        session.execute(delete(Unneeded))
        audit.record(session, actor, "artifacts.confirm", "artifacts", reason=reason, adopted=sorted(problems))
    with database.read() as session:
        _note_head(session, store)
    return sorted(problems)


def hold(folder: Path, why: str) -> None:
    """Have nothing deleted from a store until an administrator has confirmed it."""
    marks.write(folder / marks.KNOWN, restored=why)
