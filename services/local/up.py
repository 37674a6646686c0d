"""Run `relay up`: a whole site on one machine. API and worker are children of this one process."""

from __future__ import annotations

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
from relay_core.texts import site_name
from services.api import bring_up_to_date
from services.site import Settings, audit, auth, load_settings, sessions, volumes
from services.site.db import Database, Token
from services.trainer import guarded

PATIENCE = 60.0
"""The API has this many seconds to answer after its start."""
LONGEST_PAUSE = 30.0
"""Two starts of a process that ends again and again are at most this many seconds apart."""
LINK_TOKEN = "relay up"
"""Name of the token whose holder a link signs in as: whoever starts the site, in the audit log."""
LONGEST_LOG = 10 << 20
"""The next start begins a new log where the old one has more bytes than this."""


class Service:
    """A service is a child process that is started again when it ends; its process output goes to `log`."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name, self.command, self.environment, self.log = name, command, environment, log
        self.pause, self.due, self.began = 1.0, 0.0, 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def tend(self) -> None:
        """Start the process where it does not run; wait longer each time that it ends soon after its start."""
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
        """Send SIGTERM, and SIGKILL where the process still runs after `seconds`."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def run_up(home: Path, **overrides: Any) -> None:
    """Serve a whole site until Ctrl-C, SIGTERM, or the end of the terminal (SIGHUP).

    Args:
        home: folder that the site keeps everything in.
        overrides: settings that win over the environment, as keywords of `load_settings`.

    Raises:
        SettingsError: a setting is not valid.
        RelayError: another `relay up` serves the same folder, a later version used it, the site's key cannot be made, or
            the API does not come up.
    """
    os.umask(0o077)  # what a site keeps, names of files included, is its owner's alone
    settings = load_settings(embedded=True, home=home.absolute(), instance=secrets.token_hex(8), **overrides)
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    settings.home.mkdir(parents=True, exist_ok=True)
    settings.home.chmod(0o700)
    with volumes.locked(settings.home), _stop_signals() as stop_asked:
        with _database(settings) as database:
            bring_up_to_date(database)
        _make_key(settings)
        settings.site_name = name_that_holds(settings)
        services = _services(settings)
        try:
            if _start_and_wait(services, settings, stop_asked):
                _greet(settings)
            while not stop_asked.wait(0.5):
                for service in services:
                    service.tend()
        finally:
            print("stopping", file=sys.stderr, flush=True)
            for service in reversed(services):
                service.stop(settings.stop_grace + 10)


def _make_key(settings: Settings) -> None:
    """Make the key that this site signs its models with, at the first start."""
    if KeyFolder(settings.keys_folder).exists:
        return
    arguments = ["keys", "create", "--keys", str(settings.keys_folder), "--name", settings.site_name]
    has_passphrase = any(name in os.environ for name in ("RELAY_KEY_PASSPHRASE", "RELAY_KEY_PASSPHRASE_FILE"))
    command = [sys.executable, "-m", "relay_core", *arguments, *([] if has_passphrase else ["--generate-passphrase"])]
    process = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if process.returncode:
        raise RelayError(f"the site's key cannot be made: {process.stderr.strip().removeprefix('error: ')}")


def name_that_holds(settings: Settings) -> str:
    """Return the name of the site's key, which is the site's everywhere; say so where the settings want another one."""
    held, wanted = KeyFolder(settings.keys_folder).card.name, settings.site_name
    try:
        site_name(held)
    except ValueError:  # a key from before names had rules: it signs as it is called, and the API goes by the settings
        return wanted
    if "site_name" in settings.model_fields_set and wanted != held:
        print(
            f"warning: RELAY_SITE_NAME is {wanted!r}, and this site goes on as {held!r}: so its key is called, which signs "
            "what leaves the site, and other sites trust it by that name. Set RELAY_SITE_NAME back. To be called otherwise, "
            "make a new key in another folder (relay keys create, RELAY_KEYS); every other site then has to trust it anew",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    return held


def _services(settings: Settings) -> list[Service]:
    environment = {
        **os.environ, "RELAY_EMBEDDED": "1", "RELAY_HOME": str(settings.home), "RELAY_HOST": settings.host,
        "RELAY_PORT": str(settings.port), "RELAY_SITE_NAME": settings.site_name,
        "RELAY_DEVICE": settings.device, "RELAY_INSTANCE": str(settings.instance),
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


def _start_and_wait(services: list[Service], settings: Settings, stop_asked: threading.Event) -> bool:
    """Start all services and wait until our own API answers; return False where a stop was asked for meanwhile.

    Raises:
        RelayError: the API ended, or does not answer within `PATIENCE` seconds.
    """
    api, url = services[0], _url(settings)
    give_up = time.monotonic() + PATIENCE
    for service in services:
        service.tend()
    while not stop_asked.wait(0.2):
        if _is_our_api(url, settings.instance):
            return True
        if (api.process is not None and api.process.poll() is not None) or time.monotonic() > give_up:
            hint = "is the port taken? Try: relay up --port 8001"
            raise RelayError(f"the API does not answer at {url}, see {api.log}; {hint}")
    return False


def _is_our_api(url: str, instance: str | None) -> bool:
    """Return whether the API at `url` is this instance's, not that of another site which has the port."""
    try:
        health: Any = httpx.get(f"{url}/healthz", timeout=2, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return False
    return isinstance(health, dict) and health.get("instance") == instance


def _greet(settings: Settings) -> None:
    """Print where the site is, and at the first start an admin token.

    The token is made here, after the API came up: a failed start leaves no token that nobody saw.
    """
    print(f"relay is up at {_url(settings)}\nsite folder {settings.home}, images below {settings.data_folder}")
    print(f"this site's name: {settings.site_name}")
    print(f"this site's key: {spoken_fingerprint(KeyFolder(settings.keys_folder).card.fingerprint)}")
    print(f"the other sites need its card: {settings.keys_folder / 'card.json'}")
    with _database(settings) as database, database.write() as session:
        if not session.scalar(select(func.count()).select_from(Token)):
            row, text = auth.create_token(session, settings.key, "first admin", "admin")
            audit.record(session, audit.operator("relay up"), "token.create", row.id, name=row.name, role=row.role)
            print(f"admin token, shown this once:\n  export RELAY_TOKEN={text}")
        token_id = (
            auth.token_named(session, LINK_TOKEN) or auth.create_token(session, settings.key, LINK_TOKEN, "admin")[0].id
        )
        link = sessions.link(session, settings.key, token_id)
        audit.record(session, audit.operator("relay up"), "session.link", token_id)
        print(f"the site's page, signed in (once, within {sessions.LINK / 60:.0f} minutes):\n  {_url(settings)}/#{link}")
    print("Ctrl-C stops everything; running jobs go on with the next start", flush=True)


def _url(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGINT, SIGTERM and SIGHUP set; restore their handlers afterwards."""
    stop_asked, numbers = threading.Event(), (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {n: signal.signal(n, lambda number, frame: stop_asked.set()) for n in numbers}
    try:
        yield stop_asked
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
