"""The inbox: a `*.relay` that is put into a watched folder, from a USB disk say, is imported.

A file is taken when it has not changed for `STABLE` seconds: first its bytes go into the store and its row into the
database, then it moves to `taken/`. One that cannot be read moves to `refused/`. Two that watch the same folder do no harm:
the same file makes one import, as its digest and time are its Idempotency-Key.
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
"""Seconds between two looks."""
STABLE = 5.0
"""Seconds that a file keeps its size and time before it counts as copied."""
_WAIT = ("storage_full", "queue_full")
"""Refusals that are not the file's doing: it is tried again."""


@dataclass
class Inbox:
    """A watched folder.

    Args:
        folder: with the files; made where it is not there.
        database: of the site.
        doorbell: rung for the jobs.
        settings: of the site.
    """

    folder: Path
    database: Database
    doorbell: Doorbell
    settings: Settings
    _seen: dict[str, tuple[tuple[int, int], float]] = field(default_factory=dict)
    """Name -> size and time of a file, and since when."""
    _done: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Files that could not be moved away: they are not taken twice."""

    def watch(self, stop: threading.Event) -> None:
        """Look every `PERIOD` seconds until `stop`."""
        while not stop.wait(PERIOD):
            try:
                self.look()
            except (RelayError, SQLAlchemyError, OSError) as error:
                log.warning("the inbox waits: %s", error)
            except Exception:
                log.exception("the inbox goes on after an error")

    def look(self) -> list[str]:
        """Take in what has been copied; return the new imports."""
        self.folder.mkdir(parents=True, exist_ok=True)
        now, before, taken = time.monotonic(), self._seen, []
        self._seen = {}
        for name, mark in sorted(_files(self.folder)):
            known, since = before.get(name, (None, now))
            self._seen[name] = (mark, since if known == mark else now)
            if known == mark and now - since >= STABLE and self._done.get(name) != mark:
                taken += self._take(name, mark)
        return taken

    def _take(self, name: str, mark: tuple[int, int]) -> list[str]:
        store = ArtifactStore(self.settings.artifact_folder)
        try:
            if store.free_mib() - (mark[0] >> 20) < self.settings.min_free_mib:
                raise Refusal("storage_full", "there is no room for it")
            with _opened(self.folder / name) as file:
                digest, size = store.put(_whole(file, mark), self.settings.max_bundle_mib << 20)
            with self.database.write() as session:
                row, new = bundle_exchange.receive(
                    session, digest, size, purpose="train", actor=ACTOR, key=f"{digest}:{mark[1]}",
                    queue_limit=self.settings.queue_limit,
                )  # fmt: skip
        except (_Changed, FileNotFoundError):
            return []  # somebody still writes to it, or else took it
        except (Refusal, OSError) as error:
            if isinstance(error, Refusal) and error.code in _WAIT:
                log.warning("the inbox waits with %s: %s", name, error)
                return []
            self._refuse(name, mark, error.strerror or "cannot be read" if isinstance(error, OSError) else str(error))
            return []
        self._move(name, mark, "taken", digest[:12])
        if not new:
            return []
        log.info("%s was taken from the inbox", row.id)
        self.doorbell.ring(row.job_id)
        return [row.id]

    def _refuse(self, name: str, mark: tuple[int, int], why: str) -> None:
        log.warning("the inbox refuses %s: %s", name, why)
        if self._move(name, mark, "refused", str(mark[1])):
            shown = os.fsencode(name).decode(errors="replace")[:200]
            with self.database.write() as session:
                audit.record(session, ACTOR, "inbox.refuse", shown, reason=why)

    def _move(self, name: str, mark: tuple[int, int], where: str, tail: str) -> bool:
        """Move a file out of the way; a folder that does not allow that is looked past."""
        self._seen.pop(name, None)
        target = self.folder / where / f"{name.removesuffix('.relay')}.{tail}.relay"
        try:
            target.parent.mkdir(exist_ok=True)
            (self.folder / name).rename(target)
        except FileNotFoundError:
            return False  # somebody else moved it
        except OSError as error:
            log.warning("%s stays in the inbox: %s", name, error.strerror)
            self._done[name] = mark
        return True


class _Changed(Exception):
    """The file is not the one that was looked at."""


def _files(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name, size and time of each regular file that may be due; links are not followed, hidden files not looked at."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".relay") and not entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                found = entry.stat(follow_symlinks=False)
                if found.st_size:
                    yield entry.name, (found.st_size, found.st_mtime_ns)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file, and nothing that took its place meanwhile."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _Changed
        yield file


def _whole(file: BinaryIO, mark: tuple[int, int]) -> Iterator[bytes]:
    """The bytes of a file that nobody writes to meanwhile."""
    while chunk := file.read(CHUNK):
        yield chunk
    found = os.fstat(file.fileno())
    if (found.st_size, found.st_mtime_ns) != mark:
        raise _Changed
