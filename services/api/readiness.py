"""Whether the site can take jobs and carry them out."""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from relay_core.errors import RelayError
from services.api.inference import Host, hosting
from services.api.schemas import Check, Readiness
from services.site import ArtifactStore, Settings, workers
from services.site.db import Database, Lockout, Worker, migrate, now

EVERY = 5.0
"""Seconds between two trial writes: a probe may ask more often."""
_MARK = "readyz"
"""Row of the lockouts' table that is written to; it counts no failure."""
log = logging.getLogger(__name__)


class Probe:
    """Looks at everything that a job needs."""

    def __init__(self, settings: Settings, database: Database, store: ArtifactStore, host: Host) -> None:
        self.settings, self.database, self.store, self.host = settings, database, store, host
        self._lock = threading.Lock()
        self._head = migrate.head()
        self._written_at = -EVERY
        self._database = Check(ok=False, detail="was not tried yet")

    def look(self) -> Readiness:
        """All checks, and what they come to."""
        checks = {"database": self._write(), "storage": self._storage()}
        seen: list[Worker] = []
        try:
            checks["migrations"] = self._migrations()
            with self.database.read() as session:
                seen = workers.lately(session, self.settings.lately)
        except (SQLAlchemyError, RelayError) as error:
            log.warning("the database cannot be read: %s", error)
            checks["database"] = Check(ok=False, detail="cannot be read")
        checks["worker"] = Check(ok=bool(seen), detail=f"seen lately: {len(seen)}")
        vital = all(check.ok for check in checks.values())
        checks["device"] = self._device(seen)
        checks["inference"] = self._inference()
        well = checks["device"].ok and checks["inference"].ok
        status = "not_ready" if not vital else "ready" if well else "degraded"
        return Readiness(status=status, checks=checks)

    def _write(self) -> Check:
        """A small real write, at most every `EVERY` seconds; meanwhile the last result counts."""
        if not self._lock.acquire(blocking=self._written_at < 0):
            return self._database
        try:
            if time.monotonic() - self._written_at >= EVERY:
                self._database = self._try()
                self._written_at = time.monotonic()
            return self._database
        finally:
            self._lock.release()

    def _try(self) -> Check:
        try:
            with self.database.write() as session:
                session.merge(Lockout(address=_MARK, failures=0, since=now(session)))
        except (SQLAlchemyError, RelayError) as error:
            log.warning("the trial write failed: %s", error)
            return Check(ok=False, detail="does not take a write")
        return Check(ok=True, detail="took a write")

    def _storage(self) -> Check:
        needed = self.settings.min_free_mib
        try:
            free = self.store.free_mib()
        except OSError as error:
            log.warning("the artifact volume cannot be looked at: %s", error)
            return Check(ok=False, detail="cannot be looked at")
        return Check(ok=free >= needed, detail=f"free {free} MiB, needed {needed} MiB")

    def _migrations(self) -> Check:
        current = migrate.current(self.database)
        return Check(ok=current == self._head, detail=f"at {current}, this version's is {self._head}")

    def _inference(self) -> Check:
        """Whether models would run on what the settings ask for."""
        wanted = self.settings.serve_device
        try:
            found = hosting.runtime().providers(wanted)[0]
        except RelayError as error:
            return Check(ok=False, detail=str(error))
        used = {hosted.session.provider for hosted in self.host.loaded}
        name = ", ".join(sorted(used)) or (found if isinstance(found, str) else found[0])
        ok = name == "CUDAExecutionProvider" or not wanted.startswith("cuda")
        return Check(ok=ok, detail=f"provider: {name}" + ("" if ok else f"; wanted: {wanted}"))

    def _device(self, seen: list[Worker]) -> Check:
        """Whether a worker computes on what the settings ask for; says what they compute on, and with which ops."""
        used = sorted({f"{row.facts.get('device', 'unknown')} ({row.facts.get('ops', 'unknown')} ops)" for row in seen})
        wanted = self.settings.device.startswith("cuda")
        found = any(str(row.facts.get("device", "")).startswith("cuda") for row in seen)
        text = "in use: " + (", ".join(used) or "none")
        return Check(ok=found or not wanted, detail=text + (f"; wanted: {self.settings.device}" if wanted else ""))
