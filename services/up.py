"""`relay up`: a whole site on one machine, without a server. API and worker are children of this one process."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from relay_core.errors import RelayError
from services.site import audit, auth
from services.site.db.engine import Database
from services.site.db.migrate import upgrade
from services.site.db.models import Token
from services.site.settings import Settings, load_settings
from services.trainer.leash import leashed

PATIENCE = 60.0
"""Seconds that the API has to answer after its start."""
LONGEST_PAUSE = 30.0
"""Seconds at most between two starts of a process that ends again and again."""
LONGEST_LOG = 10 << 20
"""Bytes of a log beyond which the next start begins a new one."""


class Service:
    """A child that is started again when it ends; what it says goes to `log`."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name, self.command, self.environment, self.log = name, command, environment, log
        self.pause, self.due, self.began = 1.0, 0.0, 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def tend(self) -> None:
        """Start it where it does not run; after quick ends with growing pauses."""
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            self.pause = 1.0 if now - self.began > LONGEST_PAUSE else min(self.pause * 2, LONGEST_PAUSE)
            code, pause = self.process.returncode, f"{self.pause:g}"
            print(f"{self.name} ended with code {code} (see {self.log}); again in {pause} s", file=sys.stderr)
            self.process, self.due = None, now + self.pause
        if self.process is None and now >= self.due:
            if self.log.is_file() and self.log.stat().st_size > LONGEST_LOG:
                self.log.replace(self.log.with_suffix(".old.log"))
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    leashed(self.command), env=self.environment, stdout=log, stderr=log, start_new_session=True
                )
            self.began = now

    def stop(self, seconds: float) -> None:
        """SIGTERM, and after `seconds` SIGKILL."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def run_up(home: Path, **overrides: Any) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        SettingsError: a setting is not valid.
        RelayError: another `relay up` serves the same folder, or the API does not come up.
    """
    settings = load_settings(embedded=True, home=home.absolute(), **overrides)
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    with _alone(settings.home), _until_asked() as asked:
        token = _prepare(settings)
        url = f"http://{settings.host}:{settings.port}"
        services = _services(settings)
        try:
            _await_api(services, url, asked)
            print(f"relay is up at {url}\nsite folder {settings.home}, images below {settings.data_folder}")
            if token is not None:
                print(f"admin token, shown this once:\n  export RELAY_TOKEN={token}")
            print("Ctrl-C stops everything; running jobs go on with the next start", flush=True)
            while not asked.wait(0.5):
                for service in services:
                    service.tend()
        finally:
            print("stopping", file=sys.stderr, flush=True)
            for service in reversed(services):
                service.stop(settings.stop_grace + 10)


def _services(settings: Settings) -> list[Service]:
    environment = {
        **os.environ, "RELAY_EMBEDDED": "1", "RELAY_HOME": str(settings.home), "RELAY_HOST": settings.host,
        "RELAY_PORT": str(settings.port), "RELAY_DEVICE": settings.device, "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    logs = settings.home / "logs"
    logs.mkdir(exist_ok=True)
    worker = "poll" if settings.broker_url is None else "worker"
    return [
        Service("api", [sys.executable, "-m", "services.api"], environment, logs / "api.log"),
        Service("worker", [sys.executable, "-m", f"services.trainer.{worker}"], environment, logs / "worker.log"),
    ]


def _prepare(settings: Settings) -> str | None:
    """Bring the database up to date; at the first start make an admin token and return it."""
    database = Database(settings.database)
    upgrade(database)
    with database.write() as session:
        if session.scalar(select(func.count()).select_from(Token)):
            return None
        row, text = auth.create_token(session, settings.key, "first admin", "admin")
        audit.record(session, "relay up", "token.create", row.id, name=row.name, role=row.role)
    database.close()
    return text


def _await_api(services: list[Service], url: str, asked: threading.Event) -> None:
    give_up = time.monotonic() + PATIENCE
    for service in services:
        service.tend()
    while not asked.wait(0.2):
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            pass
        api = services[0].process
        if (api is not None and api.poll() is not None) or time.monotonic() > give_up:
            raise RelayError(
                f"the API does not answer at {url}, see {services[0].log}; is the port taken? Try: relay up --port 8001"
            )


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel frees it whatever happens to this process."""
    with (home / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RelayError(f"another relay up serves {home}; stop it, or choose another --home") from None
        yield


@contextmanager
def _until_asked() -> Iterator[threading.Event]:
    asked = threading.Event()
    before = {n: signal.signal(n, lambda number, frame: asked.set()) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, old in before.items():
            signal.signal(number, old)
