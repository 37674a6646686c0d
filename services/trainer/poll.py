"""`python -m services.trainer.poll`: a worker without a broker. It looks into the database every second."""

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
    """Work until SIGTERM or SIGINT."""
    try:
        settings = load_settings()
    except RelayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    logging.basicConfig(level=settings.log_level, format="%(levelname)s %(name)s: %(message)s")
    asked = threading.Event()

    def leave(number: int, frame: Any) -> None:
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    station = WorkerLoop(settings, asked.is_set)
    while not asked.is_set():
        try:
            busy = station.work_once()
        except (SQLAlchemyError, RelayError) as error:
            log.warning("no job can be claimed now: %s", error)
            busy = False
        if not busy:
            asked.wait(PERIOD)
    station.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
