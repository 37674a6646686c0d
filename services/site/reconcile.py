"""The reconciler: takes jobs from workers that are gone, and rings again for those that wait. Two at once do no harm."""

from __future__ import annotations

import logging
import threading

from relay_core.errors import RelayError
from services.site import artifacts, jobs, leases, workers
from services.site.artifacts import ArtifactStore
from services.site.db.engine import Database
from services.site.dispatch import Doorbell
from services.site.settings import Settings

log = logging.getLogger(__name__)

PERIOD = 2.0
"""Seconds between two looks: a lease of 25 s is seen to be over within 27."""
SWEEP_EVERY = 3600.0


def reconcile_once(database: Database, doorbell: Doorbell, settings: Settings) -> tuple[int, int]:
    """Look once; return the jobs taken from lost workers and the doorbells rung."""
    with database.write() as session:
        expired = leases.expire(session, settings.max_tries)
        waiting = jobs.unrung(session, settings.ring_after, workers.idle(session, settings.lease))
        workers.forget(session)
    for job in expired:
        log.warning("%s: its worker was lost, now %s", job.id, job.state)
    for job_id in waiting:
        doorbell.ring(job_id)
    return len(expired), len(waiting)


def run(database: Database, doorbell: Doorbell, settings: Settings, stop: threading.Event) -> None:
    """Look every `PERIOD` seconds until `stop`, and sweep the store now and then."""
    store = ArtifactStore(settings.artifact_folder)
    since_sweep = SWEEP_EVERY
    while not stop.is_set():
        try:
            reconcile_once(database, doorbell, settings)
            if since_sweep >= SWEEP_EVERY:
                since_sweep = 0.0
                artifacts.sweep(database, store)
        except (RelayError, OSError) as error:
            log.warning("the reconciler waits for the database or the disk: %s", error)
        except Exception:
            log.exception("the reconciler goes on after an error")
        stop.wait(PERIOD)
        since_sweep += PERIOD
