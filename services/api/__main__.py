"""`python -m services.api`: migrate the database, then serve.

Behind a reverse proxy set FORWARDED_ALLOW_IPS to its address; otherwise X-Forwarded-For is not believed, and a lockout
after failed logins is the proxy's.
"""

from __future__ import annotations

import os
import sys

import uvicorn

from relay_core.errors import RelayError
from services.api import logs
from services.api.main import create_app
from services.site.db import Database, migrate
from services.site.settings import load_settings

GRACE = 3
"""Seconds that open requests have at a stop; an event stream would take for ever."""


def main() -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    try:
        settings = load_settings()
        logs.configure(settings.log_level)
        database = Database(settings.database)
        migrate.upgrade(database)
        database.close()
    except RelayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    app = create_app(settings, reconcile=settings.reconcile)
    uvicorn.run(
        app, host=settings.host, port=settings.port, workers=1, log_config=None, access_log=False, server_header=False,
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ, timeout_graceful_shutdown=GRACE,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
