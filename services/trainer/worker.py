"""Run a Celery worker, `python -m services.trainer.worker`, with one pool process and one training per device.

A message of the queue is only a doorbell; the database says what to do. SIGTERM (docker stop) asks the running training to
write a checkpoint, hands its job back and ends the worker: Celery's warm shutdown waits for the task, and the task ends
because it is told to. (Remapping SIGTERM to a cold shutdown would kill the training without a checkpoint, or
wait for a fixed time.)
The Celery processes never touch CUDA: trainings are processes of their own.
"""

from __future__ import annotations

import mmap
import sys
from typing import TYPE_CHECKING, Any

from relay_core.errors import RelayError
from services.site import QUEUE, Settings, SettingsError, celery_app, load_settings, workers
from services.trainer import tasks
from services.trainer.process_guard import die_with_parent
from services.trainer.worker_loop import WorkerLoop

if TYPE_CHECKING:
    from celery import Celery

_LEAVING = mmap.mmap(-1, 1)
"""One byte, shared with the pool processes, which are forked later: 1 when the worker was asked to leave."""


def leaving() -> bool:
    """Return whether this worker was asked to leave."""
    return _LEAVING[0] != 0


def make_worker_app(settings: Settings) -> Celery:
    """Make the Celery application with its task and with handlers of its processes' start and end.

    Raises:
        SettingsError: no broker is set.
    """
    from celery.signals import worker_process_init, worker_process_shutdown, worker_shutting_down

    if settings.broker is None:
        raise SettingsError("RELAY_BROKER_URL is not set; without a broker run: python -m services.trainer.poll")
    app = celery_app(settings.broker)
    app.conf.worker_proc_alive_timeout = 60.0  # a restarted pool process first imports modules and asks the driver
    tasks.add_to(app)

    @worker_shutting_down.connect(weak=False)
    def leave(**kwargs: Any) -> None:
        _LEAVING[0] = 1

    @worker_process_init.connect(weak=False)
    def begin(**kwargs: Any) -> None:
        die_with_parent()
        tasks.station = WorkerLoop(settings, leaving)

    @worker_process_shutdown.connect(weak=False)
    def end(**kwargs: Any) -> None:
        if tasks.station is not None:
            tasks.station.close()

    return app


def main() -> int:
    """Work until SIGTERM; return the exit code."""
    try:
        settings = load_settings()
        app = make_worker_app(settings)
    except RelayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    processes = len(workers.devices(settings.device, settings.gpus))  # cached before the fork, for the pool processes
    app.worker_main(
        ["worker", "--pool=prefork", f"--concurrency={processes}", f"--queues={QUEUE}", "--without-gossip",
         "--without-mingle", "--without-heartbeat", f"--loglevel={settings.log_level}", "--hostname=relay@%h"]
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
