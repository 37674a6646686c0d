"""Migrate the database, then serve: `python -m services.api`.

Behind a reverse proxy set FORWARDED_ALLOW_IPS to its address; otherwise (unset or empty) X-Forwarded-For is not believed,
and failed logins count for the proxy's address.
"""

from __future__ import annotations

import os
import sys

import uvicorn

from relay_core.errors import RelayError
from services.api import logs
from services.api.main import create_app
from services.api.migration import bring_up_to_date
from services.api.protocol import guarded
from services.site import load_settings
from services.site.db import Database

GRACE = 3
"""Seconds that open requests get to finish when the server stops; an event stream would never end by itself."""


KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than clients keep it, so that none writes into a closed one."""


def main() -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    try:
        settings = load_settings(needs_key=True)
        logs.configure(settings.log_level)
        database = Database(settings.database)
        bring_up_to_date(database)
        database.close()
    except RelayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    app = create_app(settings, reconcile=settings.reconcile)
    uvicorn.run(
        app, http=guarded(settings), host=settings.host, port=settings.port, workers=1,
        log_config=None, access_log=False, server_header=False,
        proxy_headers=bool(os.environ.get("FORWARDED_ALLOW_IPS")), timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
