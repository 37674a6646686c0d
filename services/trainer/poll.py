"""Run a worker without a broker, `python -m services.trainer.poll`: it looks into the database every second."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from relay_core.errors import RelayError
from services.site import load_settings
from services.trainer.worker_loop import WorkerLoop

PERIOD = 1.0
log = logging.getLogger(__name__)


def main() -> int:
    """Work until SIGTERM, SIGINT or SIGHUP; return the exit code."""
    try:
        settings = load_settings()
    except RelayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    logging.basicConfig(level=settings.log_level, format="%(levelname)s %(name)s: %(message)s")
    leave_requested = threading.Event()

    def leave(number: int, frame: Any) -> None:
        leave_requested.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, leave)
    worker_loop = WorkerLoop(settings, leave_requested.is_set)
    while not leave_requested.is_set():
        try:
            busy = worker_loop.work_once()
        except (SQLAlchemyError, RelayError) as error:
            log.warning("no job can be claimed now: %s", error)
            busy = False
        if not busy:
            leave_requested.wait(PERIOD)
    worker_loop.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
