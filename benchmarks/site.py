"""A site on SQLite in a temporary folder, one API process, no worker: what the service's benchmarks measure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from services.site import Settings, auth, load_settings
from services.site.db import Database, migrate


@dataclass(frozen=True)
class Site:
    """A running site."""

    url: str
    token: str
    settings: Settings
    database: Database
    process: subprocess.Popen[bytes]

    @property
    def memory_mib(self) -> float:
        """Resident memory of the API process."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


@contextmanager
def running(port: int, **variables: str) -> Iterator[Site]:
    """Start it, with these RELAY_* variables, and remove it at the end."""
    home = Path(tempfile.mkdtemp())
    settings = load_settings(embedded=True, home=home)
    database = Database(settings.database)
    migrate.upgrade(database)
    with database.write() as session:
        _, token = auth.create_token(session, settings.key, "load", "operator")
    given = {"RELAY_EMBEDDED": "1", "RELAY_HOME": str(home), "RELAY_PORT": str(port), **variables}
    with (home / "api.log").open("wb") as log:
        api = subprocess.Popen([sys.executable, "-m", "services.api"], env={**os.environ, **given}, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            try:
                httpx.get(f"{url}/healthz", trust_env=False)
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield Site(url, token, settings, database, api)
    finally:
        api.terminate()
        api.wait()
        database.close()
        shutil.rmtree(home)
