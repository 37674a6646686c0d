"""Ring the doorbell: a message tells the workers that a job waits.

The message may fail or be lost: the job's row in the database is the truth, and the reconciler rings again.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from celery import Celery

TASK = "relay.run"
QUEUE = "relay"
log = logging.getLogger(__name__)


class Doorbell(Protocol):
    """Tells the workers of a site that a job waits."""

    def ring(self, job_id: str) -> None:
        """Say that this job waits; never raises, never blocks."""

    def close(self) -> None:
        """Stop: the doorbell rings for no further job."""


class Silent:
    """Rings for nobody: without a broker the workers look into the database by themselves."""

    def ring(self, job_id: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class CeleryDoorbell:
    """Sends a task with the job's id through Celery, from a thread of its own: a dead broker delays no request."""

    def __init__(self, broker: str) -> None:
        self.app = celery_app(broker)
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="doorbell", daemon=True)
        self._thread.start()

    def ring(self, job_id: str) -> None:
        """Queue the message and return."""
        self._waiting.put(job_id)

    def close(self) -> None:
        """Send the messages that wait, for at most two seconds, and stop."""
        self._waiting.put(None)
        self._thread.join(2)

    def _send(self) -> None:
        while (job_id := self._waiting.get()) is not None:
            try:
                self.app.send_task(TASK, args=[job_id], queue=QUEUE, retry=False, ignore_result=True)
            except Exception as error:
                log.warning("the queue is not reachable, %s waits for the reconciler: %s", job_id, error)


def doorbell(broker: str | None) -> Doorbell:
    """Return the doorbell of a site: one that sends messages through `broker`, or a silent one without a broker."""
    return CeleryDoorbell(broker) if broker else Silent()


def celery_app(broker: str) -> Celery:
    """Make the Celery application that the doorbell and the worker both use.

    A message is acknowledged when it is received: redelivery is the reconciler's task here, not Celery's, as the
    reconciler is faster and cannot run a job twice.
    """
    from celery import Celery

    app = Celery("relay", broker=broker, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=False,
        task_default_queue=QUEUE,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        task_send_sent_event=False,
        worker_enable_remote_control=False,  # whoever has the broker's password rings, and commands nobody
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=3,
        broker_transport_options={"socket_timeout": 3, "socket_connect_timeout": 3, "max_retries": 1},
    )
    return app
