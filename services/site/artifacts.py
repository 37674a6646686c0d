"""Keep files in a content-addressed store: `<folder>/sha256/ab/cdef...`, named by the SHA-256 of their bytes.

A stream is written to a temporary file, synced and renamed; reading checks the digest again. The database says which rows
need which bytes (`Attachment`); `sweep.py` removes what nobody needs. Nothing is written to a folder without its mark: then
its volume is not mounted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from relay_core.files import replace_with, sync
from services.site import marks
from services.site.db import Artifact, Attachment
from services.site.errors import Refusal

CHUNK = 1 << 20


class ArtifactStore:
    """Stores files below `folder` by the SHA-256 of their bytes, their digest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Return the path of the bytes with a digest; they need not exist."""
        return self.folder / "sha256" / digest[:2] / digest[2:]

    def in_trash(self, digest: str) -> Path:
        """Return the path of the bytes with a digest in the trash; they need not be there."""
        return self.folder / "trash" / digest

    @property
    def mounted(self) -> bool:
        """Return whether the folder holds its mark. Without it, it may be the mount point of a volume that is away."""
        return marks.is_marked(self.folder)

    def require_mounted(self) -> None:
        """Raise Refusal `volume_away` where the folder does not hold its mark."""
        if not self.mounted:
            raise Refusal("volume_away", "the volume `artifacts` is not mounted; mount it and try again")

    @contextlib.contextmanager
    def incoming(self, limit: int | None = None) -> Iterator[Incoming]:
        """Give a new file to write to; it is deleted at the end of the block unless its `keep` was called.

        Raises:
            Refusal: `volume_away`, `storage_full`, or `too_large` beyond `limit` bytes.
        """
        self.require_mounted()
        staging = self.folder / "staging"
        temporary = staging / secrets.token_hex(8)
        try:
            staging.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                yield Incoming(self, file, temporary, limit)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Refusal("storage_full", "the artifact volume is full; make room and try again") from error
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def put(self, chunks: Iterable[bytes], limit: int | None = None) -> tuple[str, int]:
        """Store a stream; return its digest and size in bytes.

        Raises:
            Refusal: `volume_away`, `storage_full`, or `too_large` beyond `limit` bytes; nothing of the stream stays.
        """
        with self.incoming(limit) as file:
            for chunk in chunks:
                file.write(chunk)
            return file.keep()

    def put_file(self, path: Path) -> tuple[str, int]:
        """Store a copy of a file; return its digest and size in bytes."""
        with path.open("rb") as file:
            return self.put(iter(lambda: file.read(CHUNK), b""))

    def read(self, digest: str) -> Iterator[bytes]:
        """Yield the bytes, chunk by chunk; the last chunk comes only if the whole file has the right digest.

        Raises:
            Refusal: `artifact_damaged` where the file is missing or was changed.
        """
        hasher, pending = hashlib.sha256(), b""
        with self._open(digest) as file:
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
                if pending:
                    yield pending
                pending = chunk
        _require_digest(digest, hasher)
        if pending:
            yield pending

    def read_part(self, digest: str, first: int, last: int) -> Iterator[bytes]:
        """Yield the bytes `first` to `last` (included), chunk by chunk, after the digest of the whole file was verified.

        Raises:
            Refusal: `artifact_damaged` where the file is missing or was changed.
        """
        with self._open(digest) as file:
            hasher = hashlib.file_digest(file, "sha256")
            _require_digest(digest, hasher)
            file.seek(first)
            remaining = last + 1 - first
            while chunk := file.read(min(CHUNK, remaining)):
                remaining -= len(chunk)
                yield chunk

    def _open(self, digest: str) -> BufferedReader:
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError:
            pass
        try:
            self.take_back(digest)
            return self.path(digest).open("rb")
        except FileNotFoundError:
            self.require_mounted()
            raise Refusal("artifact_damaged", f"the bytes of {digest} are not in the store; restore a backup") from None

    def take_back(self, digest: str) -> None:
        """Move bytes from the trash back to their place, unless the same bytes came anew: then those stay.

        Raises FileNotFoundError where they are not in the trash.
        """
        if not self.in_trash(digest).is_file():
            raise FileNotFoundError(self.in_trash(digest))
        if self.path(digest).is_file():
            self.in_trash(digest).unlink()
            return
        self.path(digest).parent.mkdir(parents=True, exist_ok=True)
        self.in_trash(digest).rename(self.path(digest))

    def fetch(self, digest: str, target: Path) -> None:
        """Copy verified bytes to `target`, whole or not at all. Raises Refusal `artifact_damaged`."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                for chunk in self.read(digest):
                    file.write(chunk)

        replace_with(target, write)

    def free_mib(self) -> int:
        """Return the free space of the store's volume in MiB; 0 where it is not mounted."""
        return shutil.disk_usage(self.folder).free >> 20 if self.mounted else 0


def _require_digest(digest: str, hasher: Any) -> None:
    if hasher.hexdigest() != digest:
        raise Refusal("artifact_damaged", f"the bytes of {digest} were changed on disk; restore a backup")


class Incoming:
    """Takes the bytes of one file on their way into the store; made by `ArtifactStore.incoming`."""

    def __init__(self, store: ArtifactStore, file: BinaryIO, path: Path, limit: int | None) -> None:
        self._store, self._file, self._path, self._limit = store, file, path, limit
        self._digest = hashlib.sha256()
        self.size = 0
        """Number of bytes written so far."""

    def write(self, chunk: bytes) -> None:
        """Add bytes. Raises Refusal `too_large` beyond the limit."""
        self.size += len(chunk)
        if self._limit is not None and self.size > self._limit:
            raise Refusal("too_large", f"more than {self._limit} bytes")
        self._digest.update(chunk)
        self._file.write(chunk)

    def keep(self) -> tuple[str, int]:
        """Sync the file and move it to the place of its digest; return digest and size in bytes. Raises `volume_away`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._store.require_mounted()
        target = self._store.path(self._digest.hexdigest())
        target.parent.mkdir(parents=True, exist_ok=True)
        self._path.replace(target)
        sync(target.parent)
        return self._digest.hexdigest(), self.size


def keep(session: Session, digest: str, size: int, media_type: str) -> None:
    """Record in the database that bytes are in the store, where that is not recorded yet."""
    insert = (postgresql if session.get_bind().dialect.name == "postgresql" else sqlite).insert(Artifact)
    values = {"digest": digest, "size": size, "media_type": media_type}
    session.execute(insert.on_conflict_do_nothing(), values)  # two jobs may store the same bytes at once


def attach(session: Session, owner: str, name: str, digest: str, size: int, media_type: str) -> None:
    """Record that `owner` needs stored bytes under `name`; an earlier attachment of that name is replaced."""
    keep(session, digest, size, media_type)
    session.merge(Attachment(owner=owner, name=name, digest=digest))
    session.flush()


def detach(session: Session, owner: str, name: str | None = None) -> None:
    """Remove the attachment called `name` from `owner`, or all its attachments where no name is given."""
    name_filter = [Attachment.name == name] if name is not None else []
    session.execute(delete(Attachment).where(Attachment.owner == owner, *name_filter))


def attached(session: Session, owner: str) -> dict[str, Artifact]:
    """Return name -> artifact for everything that is attached to `owner`."""
    rows = session.execute(
        select(Attachment.name, Artifact).join(Artifact).where(Attachment.owner == owner).order_by(Attachment.name)
    )
    return {row[0]: row[1] for row in rows}
