"""Check whether a worker of this machine was seen lately: `python -m services.trainer.health`, for a container."""

from __future__ import annotations

import platform
import sys

from services.site import load_settings, workers
from services.site.db import Database


def main() -> int:
    """Return the exit code: 0 where a worker of this machine was seen lately, else 1."""
    settings = load_settings()
    database = Database(settings.database)
    with database.read() as session:
        worker_ids = [row.id for row in workers.lately(session, settings.lease) if row.host == platform.node()]
    database.close()
    return 0 if worker_ids else 1


if __name__ == "__main__":
    sys.exit(main())
