"""One running API on each kind of database, for all tests of this folder."""

import os
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import make_url

from tests.api.kit import Site, running

SERVER = os.environ.get("RELAY_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A schema of its own."""
    try:
        connection = psycopg.connect(SERVER, autocommit=True, connect_timeout=3)
    except psycopg.OperationalError as error:
        pytest.skip(f"PostgreSQL is not at {SERVER}: {error}")
    schema = f"api_{uuid.uuid4().hex[:12]}"
    with connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        url = make_url(SERVER).set(drivername="postgresql+psycopg", query={"options": f"-csearch_path={schema}"})
        yield url.render_as_string(hide_password=False)
        connection.execute(f"DROP SCHEMA {schema} CASCADE")


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site; its API runs for the whole session."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    with running(tmp_path_factory.mktemp(request.param), url) as found:
        yield found


@pytest.fixture(scope="session")
def small_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site on SQLite, for what does not depend on the database."""
    with running(tmp_path_factory.mktemp("small"), None) as found:
        yield found
