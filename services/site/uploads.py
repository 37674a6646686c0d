"""Take a file in pieces, so that an upload which breaks off goes on where it was. A day later what nobody ended is swept."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from services.site.artifacts import CHUNK, ArtifactStore
from services.site.errors import Refusal


class Upload:
    """Holds the pieces of one file of one caller.

    Args:
        store: the store that the file is to go to.
        owner: id of the caller's token, so that nobody goes on with somebody else's.
        name: the caller's name for the upload: letters, digits and hyphens.
    """

    def __init__(self, store: ArtifactStore, owner: str, name: str) -> None:
        self._store = store
        self._path: Path = store.folder / "staging" / f"upload-{owner}-{name}"

    @property
    def received(self) -> int:
        """Number of bytes that came so far."""
        return self._path.stat().st_size if self._path.is_file() else 0

    def add(self, offset: int, piece: bytes, limit: int) -> int:
        """Add a piece that begins at `offset`; return the number of bytes that came so far.

        Raises:
            Refusal: `conflict`, with the number of bytes that came, where another piece is due; `too_large`; `volume_away`.
        """
        self._store.require_mounted()
        if offset + len(piece) > limit:
            raise Refusal("too_large", f"a bundle may have {limit} bytes here (RELAY_MAX_BUNDLE_MIB)")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file.fileno()).st_size
            if size != offset:
                raise Refusal("conflict", f"{size} bytes came so far: go on from there", extra={"received": size})
            file.write(piece)
        return size + len(piece)

    def pieces(self) -> Iterator[bytes]:
        """Yield what came. Raises Refusal `not_found` where nothing did."""
        if not self.received:
            raise Refusal("not_found", "nothing of this upload is here; a day after its last piece it is forgotten")
        with self._path.open("rb") as file:
            yield from iter(lambda: file.read(CHUNK), b"")

    def forget(self) -> None:
        """Remove the pieces."""
        self._path.unlink(missing_ok=True)
