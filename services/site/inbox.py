"""Watch the inbox: a bundle (`*.relay`) that is put into this folder, say from a USB disk, is imported.

A file is taken when it has not changed for `STABLE` seconds: first its bytes go into the store and its row into the
database, then it moves to `taken/`. A file that cannot be read moves to `refused/`. Two processes that watch the same
folder do no harm: a file makes one import, as its digest and time are its Idempotency-Key.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from sqlalchemy.exc import SQLAlchemyError

from relay_core.errors import RelayError
from services.site import audit, bundle_exchange
from services.site.artifacts import CHUNK, ArtifactStore
from services.site.db import Database
from services.site.dispatch import Doorbell
from services.site.errors import Refusal
from services.site.settings import Settings

log = logging.getLogger(__name__)

ACTOR = "inbox"
PERIOD = 1.0
"""Seconds between two looks into the folder."""
STABLE = 5.0
"""Seconds that a file keeps its size and time before it counts as copied."""
_WAIT = ("storage_full", "queue_full", "volume_away")
"""Codes of refusals that are no fault of the file: it is tried again later."""


@dataclass
class Inbox:
    """Imports the bundles that are put into a watched folder.

    Args:
        folder: the watched folder; made where it does not exist.
        database: the site's database.
        doorbell: the doorbell that rings for the jobs of new imports.
        settings: the site's settings.
    """

    folder: Path
    database: Database
    doorbell: Doorbell
    settings: Settings
    _seen: dict[str, tuple[tuple[int, int], float]] = field(default_factory=dict)
    """Name of a file -> its size in bytes and modification time in ns, and the monotonic time since when it has both."""
    _done: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Name -> size and time of each file that could not be moved away, so that it is not taken twice."""

    def watch(self, stop: threading.Event) -> None:
        """Look into the folder every `PERIOD` seconds until `stop`."""
        while not stop.wait(PERIOD):
            try:
                self.look()
            except (RelayError, SQLAlchemyError, OSError) as error:
                log.warning("the inbox waits: %s", error)
            except Exception:
                log.exception("the inbox goes on after an error")

    def look(self) -> list[str]:
        """Import the files that are completely copied; return the ids of the new imports."""
        self.folder.mkdir(parents=True, exist_ok=True)
        now, seen_before, import_ids = time.monotonic(), self._seen, []
        self._seen = {}
        for name, size_and_time in sorted(_candidate_files(self.folder)):
            previous, since = seen_before.get(name, (None, now))
            self._seen[name] = (size_and_time, since if previous == size_and_time else now)
            if previous == size_and_time and now - since >= STABLE and self._done.get(name) != size_and_time:
                import_ids += self._take(name, size_and_time)
        return import_ids

    def _take(self, name: str, size_and_time: tuple[int, int]) -> list[str]:
        store = ArtifactStore(self.settings.artifact_folder)
        try:
            store.require_mounted()
            if store.free_mib() - (size_and_time[0] >> 20) < self.settings.min_free_mib:
                raise Refusal("storage_full", "there is no room for it")
            with _open_regular(self.folder / name) as file:
                digest, size = store.put(_unchanged_bytes(file, size_and_time), self.settings.max_bundle_mib << 20)
            with self.database.write() as session:
                row, new = bundle_exchange.receive(
                    session, digest, size, purpose="train", actor=ACTOR, key=f"{digest}:{size_and_time[1]}",
                    queue_limit=self.settings.queue_limit,
                )  # fmt: skip
        except (_Changed, FileNotFoundError):
            return []  # it is still being written, or another process took it
        except (Refusal, OSError) as error:
            if isinstance(error, Refusal) and error.code in _WAIT:
                log.warning("the inbox waits with %s: %s", name, error)
                return []
            self._refuse(
                name, size_and_time, error.strerror or "cannot be read" if isinstance(error, OSError) else str(error)
            )
            return []
        self._move(name, size_and_time, "taken", digest[:12])
        if not new:
            return []
        log.info("%s was taken from the inbox", row.id)
        self.doorbell.ring(row.job_id)
        return [row.id]

    def _refuse(self, name: str, size_and_time: tuple[int, int], reason: str) -> None:
        log.warning("the inbox refuses %s: %s", name, reason)
        if self._move(name, size_and_time, "refused", str(size_and_time[1])):
            printable_name = os.fsencode(name).decode(errors="replace")[:200]
            with self.database.write() as session:
                audit.record(session, ACTOR, "inbox.refuse", printable_name, reason=reason)

    def _move(self, name: str, size_and_time: tuple[int, int], subfolder: str, suffix: str) -> bool:
        """Move a file into a subfolder, or note it as done where that is not allowed; return False where it is gone."""
        self._seen.pop(name, None)
        target = self.folder / subfolder / f"{name.removesuffix('.relay')}.{suffix}.relay"
        try:
            target.parent.mkdir(exist_ok=True)
            (self.folder / name).rename(target)
        except FileNotFoundError:
            return False  # another process moved it
        except OSError as error:
            log.warning("%s stays in the inbox: %s", name, error.strerror)
            self._done[name] = size_and_time
        return True


class _Changed(Exception):
    """Raised where a file was changed or replaced since it was looked at."""


def _candidate_files(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield name, size and time of each regular, non-empty `*.relay`; links and hidden files are left out."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".relay") and not entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                if status.st_size:
                    yield entry.name, (status.st_size, status.st_mtime_ns)


@contextmanager
def _open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file. Raises _Changed where something that is no regular file took its place."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _Changed
        yield file


def _unchanged_bytes(file: BinaryIO, size_and_time: tuple[int, int]) -> Iterator[bytes]:
    """Yield the bytes of a file, chunk by chunk. Raises _Changed at the end where somebody wrote to it meanwhile."""
    while chunk := file.read(CHUNK):
        yield chunk
    status = os.fstat(file.fileno())
    if (status.st_size, status.st_mtime_ns) != size_and_time:
        raise _Changed
