"""One running API on each kind of database, for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests import postgres
from tests.api.kit import Site, running


@pytest.fixture(scope="session")
def sqlite_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site on SQLite; its API runs for the whole session."""
    with running(tmp_path_factory.mktemp("sqlite"), None) as found:
        yield found


@pytest.fixture(scope="session")
def postgresql_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site on PostgreSQL, in a schema of its own; its API runs for the whole session."""
    with postgres.schema() as url, running(tmp_path_factory.mktemp("postgresql"), url) as found:
        yield found


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest) -> Site:
    """One of the two."""
    found: Site = request.getfixturevalue(f"{request.param}_site")
    return found


@pytest.fixture(scope="session")
def small_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site on SQLite, for what does not depend on the database."""
    with running(tmp_path_factory.mktemp("small"), None) as found:
        yield found
