"""A site on SQLite in a temporary folder, one API process: what the service's benchmarks measure.

python -m benchmarks.site        # seconds until it answers, and its memory
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.record import Record, script
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
        return held(self.process.pid)

    @contextmanager
    def worker(self, **variables: str) -> Iterator[None]:
        """A worker on the CPU, beside the API, with more variables of the environment."""
        given = {"RELAY_EMBEDDED": "1", "RELAY_HOME": str(self.settings.home), "RELAY_DEVICE": "cpu", **variables}
        process = subprocess.Popen([sys.executable, "-m", "services.trainer.poll"], env={**os.environ, **given})
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def held(pid: int) -> float:
    """Resident MiB of a process; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024
    except (OSError, StopIteration):
        return 0.0


@contextmanager
def running(**variables: str) -> Iterator[Site]:
    """Start it, with these RELAY_* variables, wait until it answers, and remove it at the end.

    Raises:
        RuntimeError: it does not answer; the message is the end of its log.
    """
    home = Path(tempfile.mkdtemp())
    settings = load_settings(embedded=True, home=home)
    database = Database(settings.database)
    migrate.upgrade(database)
    with database.write() as session:
        _, token = auth.create_token(session, settings.key, "load", "operator")
    port = free_port()
    given = {"RELAY_EMBEDDED": "1", "RELAY_HOME": str(home), "RELAY_PORT": str(port), **variables}
    with (home / "api.log").open("wb") as log:
        api = subprocess.Popen([sys.executable, "-m", "services.api"], env={**os.environ, **given}, stdout=log, stderr=log)
    site = Site(f"http://127.0.0.1:{port}", token, settings, database, api)
    try:
        _wait(site)
        yield site
    finally:
        api.terminate()
        api.wait()
        database.close()
        shutil.rmtree(home)


def _wait(site: Site) -> None:
    until = time.monotonic() + 120
    while site.process.poll() is None and time.monotonic() < until:
        try:
            httpx.get(f"{site.url}/healthz", trust_env=False)
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise RuntimeError(f"the API does not answer:\n{(site.settings.home / 'api.log').read_text()[-2000:]}")


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--repeat", type=int, default=5)


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill one table."""
    seconds, memory = [], []
    for _ in range(args.repeat):
        begin = time.monotonic()
        with running() as site:
            seconds.append(time.monotonic() - begin)
            memory.append(site.memory_mib)
    table = record.table("A site of its own, new, SQLite", {"": "", "median": ".1f", "longest, most": ".1f"})
    table.add("seconds until it answers", statistics.median(seconds), max(seconds))
    table.add("MiB of the API process", statistics.median(memory), max(memory))


main = script(__doc__, arguments, measure, toy={"repeat": 1})

if __name__ == "__main__":
    main()
