"""Define the one Celery task: when the doorbell rings, look into the database for jobs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from relay_core.errors import RelayError
from services.site import TASK

if TYPE_CHECKING:
    from celery import Celery

    from services.trainer.worker_loop import WorkerLoop

log = logging.getLogger(__name__)
station: WorkerLoop | None = None
"""The worker loop of this pool process; made after the fork."""


def add_to(app: Celery) -> None:
    """Register the task with a Celery application."""
    app.task(run, name=TASK)


def run(job_id: str) -> None:
    """Work until no job waits, so that a job whose message was lost gets its turn too."""
    assert station is not None
    log.debug("rung for %s", job_id)
    try:
        while station.work_once():
            pass
    except (SQLAlchemyError, RelayError) as error:
        log.warning("no job can be claimed now: %s", error)
