"""The one task: a doorbell rang, look into the database."""

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
"""This pool process's; made after the fork."""


def add_to(app: Celery) -> None:
    """Register the task."""
    app.task(run, name=TASK)


def run(job_id: str) -> None:
    """Work until nothing waits: every job that a lost message was for gets its turn too."""
    assert station is not None
    log.debug("rung for %s", job_id)
    try:
        while station.work_once():
            pass
    except (SQLAlchemyError, RelayError) as error:
        log.warning("no job can be claimed now: %s", error)
