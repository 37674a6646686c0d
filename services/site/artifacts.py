"""The content-addressed store: `<folder>/sha256/ab/cdef...`, named by what is in it.

Bytes come in as a stream to a temporary file, are synced, renamed; reading checks the digest again. The database says
who needs what (`Attachment`); what nobody needs is swept away, but only after `GRACE` seconds, so that
bytes of a job whose row is not committed yet stay, and a backup finds what its rows name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from relay_core.files import replace_with, sync
from services.site.db.engine import Database
from services.site.db.models import Artifact, Attachment, Checkpoint
from services.site.errors import Refusal

CHUNK = 1 << 20
GRACE = 86400.0


class ArtifactStore:
    """Files by their SHA-256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Where the bytes of a digest lie."""
        return self.folder / "sha256" / digest[:2] / digest[2:]

    def put(self, chunks: Iterable[bytes], limit: int | None = None) -> tuple[str, int]:
        """Store a stream; return its digest and size in bytes.

        Raises:
            Refusal: `storage_full`, or `too_large` beyond `limit` bytes; nothing stays of it.
        """
        staging = self.folder / "staging"
        digest, size = hashlib.sha256(), 0
        temporary = staging / secrets.token_hex(8)
        try:
            staging.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                for chunk in chunks:
                    size += len(chunk)
                    if limit is not None and size > limit:
                        raise Refusal("too_large", f"more than {limit} bytes")
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            target = self.path(digest.hexdigest())
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(target)
            sync(target.parent)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Refusal("storage_full", "the artifact volume is full; make room and retry the job") from error
            raise
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest(), size

    def put_file(self, path: Path) -> tuple[str, int]:
        """`put` for a file."""
        with path.open("rb") as file:
            return self.put(iter(lambda: file.read(CHUNK), b""))

    def read(self, digest: str) -> Iterator[bytes]:
        """The bytes, chunk by chunk; the last chunk comes only if the whole has the right digest.

        Raises:
            Refusal: `artifact_damaged`.
        """
        try:
            file = self.path(digest).open("rb")
        except FileNotFoundError:
            raise Refusal("artifact_damaged", f"the bytes of {digest} are not in the store; restore a backup") from None
        check, held = hashlib.sha256(), b""
        with file:
            while chunk := file.read(CHUNK):
                check.update(chunk)
                if held:
                    yield held
                held = chunk
        if check.hexdigest() != digest:
            raise Refusal("artifact_damaged", f"the bytes of {digest} were changed on disk; restore a backup")
        if held:
            yield held

    def fetch(self, digest: str, target: Path) -> None:
        """Copy verified bytes to `target`, whole or not at all. Raises Refusal `artifact_damaged`."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                for chunk in self.read(digest):
                    file.write(chunk)

        replace_with(target, write)

    def free_mib(self) -> int:
        """Free space of the volume."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.folder).free >> 20


def keep(session: Session, digest: str, size: int, media_type: str) -> None:
    """Say that bytes are in the store."""
    insert = (postgresql if session.get_bind().dialect.name == "postgresql" else sqlite).insert(Artifact)
    values = {"digest": digest, "size": size, "media_type": media_type}
    session.execute(insert.on_conflict_do_nothing(), values)  # two jobs may store the same bytes at once


def attach(session: Session, owner: str, name: str, digest: str, size: int, media_type: str) -> None:
    """Say that `owner` needs stored bytes under `name`; an earlier attachment of that name is replaced."""
    keep(session, digest, size, media_type)
    session.merge(Attachment(owner=owner, name=name, digest=digest))
    session.flush()


def detach(session: Session, owner: str) -> None:
    """`owner` needs nothing any more."""
    session.execute(delete(Attachment).where(Attachment.owner == owner))


def attached(session: Session, owner: str) -> dict[str, Artifact]:
    """Name -> artifact of everything that `owner` has."""
    rows = session.execute(
        select(Attachment.name, Artifact).join(Artifact).where(Attachment.owner == owner).order_by(Attachment.name)
    )
    return {row[0]: row[1] for row in rows}


def sweep(database: Database, store: ArtifactStore, grace: float = GRACE) -> int:
    """Delete bytes that no row has needed for `grace` seconds; return how many files went."""
    unneeded = [Artifact.digest.not_in(select(Attachment.digest)), Artifact.digest.not_in(select(Checkpoint.digest))]
    with database.write() as session:
        dropped = session.scalars(delete(Artifact).where(*unneeded).returning(Artifact.digest)).all()
    for digest in dropped:
        with contextlib.suppress(FileNotFoundError):
            os.utime(store.path(digest))  # its grace begins now
    with database.read() as session:
        needed = set(session.scalars(select(Artifact.digest)))
    removed, oldest = 0, time.time() - grace
    for path in [*store.folder.glob("sha256/??/*"), *store.folder.glob("staging/*")]:
        with contextlib.suppress(FileNotFoundError):
            if path.parent.name + path.name not in needed and path.stat().st_mtime < oldest:
                path.unlink()
                removed += 1
    return removed
