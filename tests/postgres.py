"""A PostgreSQL schema for a test of its own."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

SERVER = os.environ.get("RELAY_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")


@contextmanager
def schema() -> Iterator[str]:
    """The URL of a new schema, dropped at the end; skips the test where there is no server."""
    try:
        connection = psycopg.connect(SERVER, autocommit=True, connect_timeout=3)
    except psycopg.OperationalError as error:
        pytest.skip(f"PostgreSQL is not at {SERVER}: {error}")
    name = f"test_{uuid.uuid4().hex[:12]}"
    with connection:
        connection.execute(f"CREATE SCHEMA {name}")
        url = make_url(SERVER).set(drivername="postgresql+psycopg", query={"options": f"-csearch_path={name}"})
        yield url.render_as_string(hide_password=False)
        connection.execute(f"DROP SCHEMA {name} CASCADE")


class PrivateServer:
    """A PostgreSQL of a test's own, which may be killed; needs root, as PostgreSQL runs as the user postgres."""

    def __init__(self, port: int) -> None:
        if os.geteuid() != 0 or shutil.which("setpriv") is None or (found := _programs()) is None:
            raise PermissionError("a PostgreSQL of the test's own needs root, setpriv and PostgreSQL's programs")
        self.programs, self.port = found, port
        self.folder = Path(tempfile.mkdtemp(prefix="relay-postgres-"))
        shutil.chown(self.folder, "postgres", "postgres")
        initdb = [*self._as_postgres("initdb"), "-D", str(self.folder), "--auth=trust", "--encoding=UTF8"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=self.folder)

    @property
    def url(self) -> str:
        """The URL of its database."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> subprocess.Popen:
        """Start it; it recovers from whatever ended it."""
        command = [*self._as_postgres("postgres"), "-D", str(self.folder), "-p", str(self.port), "-k", str(self.folder),
                   "-c", "listen_addresses=127.0.0.1"]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=self.folder)

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            psycopg.connect(self.url.replace("+psycopg", ""), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def remove(self) -> None:
        """Remove its files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _as_postgres(self, program: str) -> list[str]:
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", str(self.programs / program)]


def _programs() -> Path | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None
