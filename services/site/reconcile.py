"""Reconcile: take jobs from workers that are gone, and ring again for jobs that wait. Two reconcilers do no harm."""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from relay_core.errors import RelayError
from services.site import jobs, leases, sweep, workers
from services.site.db import SLACK, Database, now
from services.site.dispatch import Doorbell
from services.site.inbox import Inbox
from services.site.settings import Settings

log = logging.getLogger(__name__)

PERIOD = 2.0
"""Seconds between two passes: the end of a lease of 25 s is noticed within 27 s of its last renewal."""
SWEEP_EVERY = 3600.0
REMEMBER_EVERY = 60.0
"""Seconds between two notes of how far the database has come: what an older one must lack to be noticed."""


def reconcile_once(database: Database, doorbell: Doorbell, settings: Settings) -> tuple[int, int]:
    """Make one pass; return the number of jobs taken from lost workers and the number of doorbells rung."""
    with database.write() as session:
        expired = leases.expire(session, settings.max_tries)
        workers.forget(session)
    with database.write() as session:  # a transaction of its own: a cancel locks these rows in the other order
        waiting = jobs.not_rung(session, settings.ring_after, workers.idle(session, settings.lease))
    for job in expired:
        log.warning("%s: its worker was lost, now %s", job.id, job.state)
    for job_id in waiting:
        doorbell.ring(job_id)
    return len(expired), len(waiting)


def run(database: Database, doorbell: Doorbell, settings: Settings, stop: threading.Event) -> None:
    """Make a pass every `PERIOD` seconds until `stop`; other threads sweep the store and watch the inbox."""
    threading.Thread(target=_sweep, args=(database, settings, stop), name="sweeper", daemon=True).start()
    if settings.inbox is not None:
        inbox = Inbox(settings.inbox.absolute(), database, doorbell, settings)
        threading.Thread(target=inbox.watch, args=(stop,), name="inbox", daemon=True).start()
    watch = _Watch(database, min(settings.lease / 2, SLACK))
    while not stop.is_set():
        try:
            if watch.jumped():  # the machine slept, or its clock was set: let the workers renew their leases first
                stop.wait(settings.beat + PERIOD)
            reconcile_once(database, doorbell, settings)
        except (RelayError, SQLAlchemyError, OSError) as error:
            log.warning("the reconciler waits for the database: %s", type(error).__name__)
        except Exception:
            log.exception("the reconciler goes on after an error")
        stop.wait(PERIOD)


class _Watch:
    """Compares the database's clock with one that nobody sets and that stands still while the machine sleeps."""

    def __init__(self, database: Database, tolerance: float) -> None:
        self.database, self.tolerance = database, tolerance
        self._ahead: float | None = None

    def jumped(self) -> bool:
        """Return whether the database's clock went another way since the last call, as it may have before the first one.

        Raises SQLAlchemyError.
        """
        with self.database.read() as session:
            ahead = now(session) - time.monotonic()
        before, self._ahead = self._ahead, ahead
        return before is None or abs(ahead - before) > self.tolerance


def _sweep(database: Database, settings: Settings, stop: threading.Event) -> None:
    due = time.monotonic()
    while not stop.is_set():
        try:
            sweep.remember(database, settings)
            if time.monotonic() >= due:
                sweep.sweep(database, settings)
                due = time.monotonic() + SWEEP_EVERY
        except Exception:
            log.exception("the store could not be swept; trying again later")
        stop.wait(REMEMBER_EVERY)
