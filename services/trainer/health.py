"""`python -m services.trainer.health`: whether a worker of this machine was seen lately (a container's health check)."""

from __future__ import annotations

import platform
import sys

from services.site import load_settings, workers
from services.site.db import Database


def main() -> int:
    """0 where one was."""
    settings = load_settings()
    database = Database(settings.database)
    with database.read() as session:
        alive = [row.id for row in workers.lately(session, settings.lease) if row.host == platform.node()]
    database.close()
    return 0 if alive else 1


if __name__ == "__main__":
    sys.exit(main())
