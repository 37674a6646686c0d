"""`relay up`: a whole site on one machine, without a server. API and worker are children of this one process."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import func, select

from relay_core.bundle import KeyFolder, spoken_fingerprint
from relay_core.errors import RelayError
from services.api import bring_up_to_date
from services.site import Settings, audit, auth, load_settings
from services.site.db import Database, Token
from services.trainer import guarded

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
                    guarded(self.command), env=self.environment, stdout=log, stderr=log, start_new_session=True
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
        RelayError: another `relay up` serves the same folder, a later version used it, the site's key cannot be made, or
            the API does not come up.
    """
    settings = load_settings(embedded=True, home=home.absolute(), instance=secrets.token_hex(8), **overrides)
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    with _alone(settings.home), _until_asked() as asked:
        with _database(settings) as database:
            bring_up_to_date(database)
        _make_key(settings)
        services = _services(settings)
        try:
            if _api_answers(services, settings, asked):
                _greet(settings)
            while not asked.wait(0.5):
                for service in services:
                    service.tend()
        finally:
            print("stopping", file=sys.stderr, flush=True)
            for service in reversed(services):
                service.stop(settings.stop_grace + 10)


def _make_key(settings: Settings) -> None:
    """At the first start, make the key that this site signs its models with."""
    if KeyFolder(settings.keys_folder).exists:
        return
    create = ["keys", "create", "--keys", str(settings.keys_folder), "--name", settings.site_name]
    given = any(name in os.environ for name in ("RELAY_KEY_PASSPHRASE", "RELAY_KEY_PASSPHRASE_FILE"))
    command = [sys.executable, "-m", "relay_core", *create, *([] if given else ["--generate-passphrase"])]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise RelayError(f"the site's key cannot be made: {done.stderr.strip().removeprefix('error: ')}")


def _services(settings: Settings) -> list[Service]:
    environment = {
        **os.environ, "RELAY_EMBEDDED": "1", "RELAY_HOME": str(settings.home), "RELAY_HOST": settings.host,
        "RELAY_PORT": str(settings.port), "RELAY_DEVICE": settings.device, "RELAY_INSTANCE": str(settings.instance),
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    logs = settings.home / "logs"
    logs.mkdir(exist_ok=True)
    worker = "poll" if settings.broker_url is None else "worker"
    return [
        Service("api", [sys.executable, "-m", "services.api"], environment, logs / "api.log"),
        Service("worker", [sys.executable, "-m", f"services.trainer.{worker}"], environment, logs / "worker.log"),
    ]


@contextmanager
def _database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database)
    try:
        yield database
    finally:
        database.close()


def _api_answers(services: list[Service], settings: Settings, asked: threading.Event) -> bool:
    """Start everything and wait for our own API; False where a stop was asked for meanwhile."""
    api, url = services[0], _url(settings)
    give_up = time.monotonic() + PATIENCE
    for service in services:
        service.tend()
    while not asked.wait(0.2):
        if _answers(url, settings.instance):
            return True
        if (api.process is not None and api.process.poll() is not None) or time.monotonic() > give_up:
            hint = "is the port taken? Try: relay up --port 8001"
            raise RelayError(f"the API does not answer at {url}, see {api.log}; {hint}")
    return False


def _answers(url: str, instance: str | None) -> bool:
    """Whether an API answers that is this instance, not another site's that has the port."""
    try:
        found: Any = httpx.get(f"{url}/healthz", timeout=2, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return False
    return isinstance(found, dict) and found.get("instance") == instance


def _greet(settings: Settings) -> None:
    """Say where it is; the first time with an admin token. What did not come up has made none that nobody saw."""
    print(f"relay is up at {_url(settings)}\nsite folder {settings.home}, images below {settings.data_folder}")
    print(f"this site's key: {spoken_fingerprint(KeyFolder(settings.keys_folder).card.fingerprint)}")
    print(f"the other sites need its card: {settings.keys_folder / 'card.json'}")
    with _database(settings) as database, database.write() as session:
        if not session.scalar(select(func.count()).select_from(Token)):
            row, text = auth.create_token(session, settings.key, "first admin", "admin")
            audit.record(session, "relay up", "token.create", row.id, name=row.name, role=row.role)
            print(f"admin token, shown this once:\n  export RELAY_TOKEN={text}")
    print("Ctrl-C stops everything; running jobs go on with the next start", flush=True)


def _url(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


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
