"""One running API on each kind of database, for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests import postgres
from tests.api.kit import Site, running


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A schema of the session's own."""
    with postgres.schema() as url:
        yield url


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
