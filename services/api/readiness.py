"""Check whether the site can take jobs and carry them out."""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from relay_core.errors import RelayError
from services.api.inference import Host, hosting
from services.api.schemas import Check, Readiness
from services.site import ArtifactStore, Settings, sweep, volumes, workers
from services.site.db import SLACK, AuditRecord, Database, Lockout, Worker, migrate, now

EVERY = 5.0
"""The fewest seconds between two trial writes, as probes may ask more often."""
_MARK = "readyz"
"""The key of the row in the lockouts' table that trial writes use; it counts no failure."""
log = logging.getLogger(__name__)


def _clock(session: Session) -> Check:
    """Check that the database's clock is not behind what it said before: it was set back, or was wrong then."""
    newest = session.scalar(select(AuditRecord.at).order_by(AuditRecord.seq.desc()).limit(1))
    behind = (newest or 0.0) - now(session)
    if behind <= SLACK:
        return Check(ok=True, detail="goes on")
    return Check(ok=False, detail=f"{behind:.0f} s behind the newest entry of the audit log")


class Probe:
    """Checks everything that a job needs."""

    def __init__(self, settings: Settings, database: Database, store: ArtifactStore, host: Host) -> None:
        self.settings, self.database, self.store, self.host = settings, database, store, host
        self._lock = threading.Lock()
        self._head = migrate.head()
        self._written_at = -EVERY
        self._database = Check(ok=False, detail="was not tried yet")

    def look(self) -> Readiness:
        """Run all checks, and return them with the status that follows: not_ready, degraded or ready."""
        checks = {"database": self._write(), "storage": self._storage()}
        seen_workers: list[Worker] = []
        unconfirmed: str | None = None
        try:
            checks["migrations"] = self._migrations()
            with self.database.read() as session:
                seen_workers = workers.lately(session, self.settings.lately)
                checks["clock"] = _clock(session)
                unconfirmed = sweep.unconfirmed(session, self.store)
            checks["volumes"] = self._volumes(seen_workers)
        except (SQLAlchemyError, RelayError) as error:
            log.warning("the database cannot be read: %s", error)
            checks["database"] = Check(ok=False, detail="cannot be read")
        checks["worker"] = Check(ok=bool(seen_workers), detail=f"seen lately: {len(seen_workers)}")
        can_work = all(check.ok for name, check in checks.items() if name != "clock")
        checks["device"] = self._device(seen_workers)
        checks["inference"] = self._inference()
        held = f"{unconfirmed}; nothing is deleted until: relay artifacts confirm"
        checks["restore"] = Check(ok=unconfirmed is None, detail=held if unconfirmed else "nothing to confirm")
        as_configured = all(check.ok for check in checks.values())
        status = "not_ready" if not can_work else "ready" if as_configured else "degraded"
        return Readiness(status=status, checks=checks)

    def _write(self) -> Check:
        """Make a small trial write, at most every `EVERY` seconds; in between return the last result."""
        if not self._lock.acquire(blocking=self._written_at < 0):
            return self._database
        try:
            if time.monotonic() - self._written_at >= EVERY:
                self._database = self._trial_write()
                self._written_at = time.monotonic()
            return self._database
        finally:
            self._lock.release()

    def _trial_write(self) -> Check:
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

    def _volumes(self, rows: list[Worker]) -> Check:
        """Check the volumes that this process has, and those that every worker lately seen has not."""
        problems = volumes.away(self.database, self.settings, "artifacts", "data")
        lacking = [row.facts["volumes"] for row in rows if row.facts.get("volumes")]
        if lacking and len(lacking) == len(rows):
            problems = {name: problem for facts in lacking for name, problem in facts.items()} | problems
        detail = "; ".join(problems[name] for name in sorted(problems))
        if not problems and lacking:
            detail = f"workers that wait for one: {len(lacking)} of {len(rows)}"
        return Check(ok=not problems, detail=detail or "all are there")

    def _migrations(self) -> Check:
        current = migrate.current(self.database)
        return Check(ok=current == self._head, detail=f"at {current}, this version's is {self._head}")

    def _inference(self) -> Check:
        """Check whether models run, or would run, on the device that the settings ask for."""
        wanted = self.settings.serve_device
        try:
            preferred = hosting.runtime().providers(wanted)[0]
        except RelayError as error:
            return Check(ok=False, detail=str(error))
        used = {hosted.session.provider for hosted in self.host.loaded}
        names = ", ".join(sorted(used)) or (preferred if isinstance(preferred, str) else preferred[0])
        ok = names == "CUDAExecutionProvider" or not wanted.startswith("cuda")
        return Check(ok=ok, detail=f"provider: {names}" + ("" if ok else f"; wanted: {wanted}"))

    def _device(self, rows: list[Worker]) -> Check:
        """Check whether a worker computes on the device that the settings ask for; the detail names the devices."""
        in_use = sorted({f"{row.facts.get('device', 'unknown')} ({row.facts.get('ops', 'unknown')} ops)" for row in rows})
        wants_cuda = self.settings.device.startswith("cuda")
        on_cuda = any(str(row.facts.get("device", "")).startswith("cuda") for row in rows)
        text = "in use: " + (", ".join(in_use) or "none")
        return Check(ok=on_cuda or not wants_cuda, detail=text + (f"; wanted: {self.settings.device}" if wants_cuda else ""))
