"""A site in a folder of its own, on SQLite and on PostgreSQL, and a relay small enough to train in a second or two."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.site import job_plans, jobs, runs, volumes
from services.site.artifacts import ArtifactStore
from services.site.db.engine import Database
from services.site.db.migrate import upgrade
from services.site.db.models import Dataset, Job, Run
from services.site.settings import Settings, load_settings
from tests import postgres
from tests.conftest import Toy
from tests.services.volumes import small_volume


@pytest.fixture(autouse=True)
def _one_thread_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy trainings are faster so."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """A schema of the test's own."""
    with postgres.schema() as url:
        yield url


@dataclass
class SiteKit:
    """A migrated site with its images, and helpers that a test would repeat."""

    settings: Settings
    database: Database
    store: ArtifactStore

    def environment(self) -> dict[str, str]:
        """Variables for a process of this site."""
        names = ("beat", "lease", "ring_after", "stop_grace", "hang_minutes", "max_tries", "device", "min_free_mib")
        values = {f"RELAY_{name.upper()}": str(getattr(self.settings, name)) for name in names}
        url = self.settings.database.render_as_string(hide_password=False)
        paths = {
            "RELAY_HOME": str(self.settings.home),
            "RELAY_DATABASE_URL": url,
            "RELAY_EMBEDDED": "1",
            "RELAY_DATA_ROOT": str(self.settings.data_folder),
        }
        return {**os.environ, **values, **paths, "OMP_NUM_THREADS": "1"}

    def add_run(self, path: Path, sites: int = 2) -> Run:
        """Register a run file, and the data set of each of its sites."""
        with self.database.write() as session:
            run, _ = runs.register(session, path.read_text(), path.name, "test")
            for i in range(1, sites + 1):
                if not session.query(Dataset).filter_by(name=f"Domain{i}").count():
                    session.add(Dataset(name=f"Domain{i}", path=f"Domain{i}", layout="fundus", options={}))
        return run

    def submit_train(self, run: Run, **options: object) -> str:
        """Queue a training."""
        with self.database.write() as session:
            made = job_plans.train(session, run.id, **options)  # type: ignore[arg-type]
            job, _ = jobs.submit(
                session, kind="train", params=made.params, actor="test", key=None, body={}, gpus=made.gpus,
                run_id=made.run_id, checkpoint_id=made.checkpoint_id,
            )  # fmt: skip
        return job.id

    def job(self, job_id: str) -> Job:
        """Its row now."""
        with self.database.read() as session:
            return job_plans.need(session, Job, job_id)


@pytest.fixture(params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, tmp_path: Path, phantom_data: Path) -> Iterator[SiteKit]:
    """A site on each kind of database."""
    yield from _site(
        request.getfixturevalue("postgres_url") if request.param == "postgresql" else None, tmp_path, phantom_data
    )


@pytest.fixture
def small_site(tmp_path: Path, phantom_data: Path) -> Iterator[SiteKit]:
    """A site on SQLite."""
    yield from _site(None, tmp_path, phantom_data)


def _site(url: str | None, folder: Path, data: Path) -> Iterator[SiteKit]:
    settings = load_settings(
        embedded=True, home=folder / "site", data_root=data, database_url=url, device="cpu", beat=0.5, lease=12.0,
        ring_after=1.0, stop_grace=10.0,
    )  # fmt: skip
    with open_site(settings) as site:
        yield site


@contextlib.contextmanager
def open_site(settings: Settings) -> Iterator[SiteKit]:
    """A migrated site."""
    database = Database(settings.database)
    upgrade(database)
    assert volumes.away(database, settings, *volumes.WRITTEN) == {}  # it is new: they are marked
    try:
        yield SiteKit(settings, database, ArtifactStore(settings.artifact_folder))
    finally:
        database.close()


@pytest.fixture
def artifact_volume(tmp_path: Path) -> Iterator[Path]:
    """The artifacts of `small_site` on 16 MiB."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(small_volume(tmp_path / "site" / "artifacts", 16))
        except PermissionError as reason:
            pytest.skip(str(reason))
        yield folder


@pytest.fixture
def toy_run(toy: Toy) -> Path:
    """A run of two sites, six steps each."""
    return toy.write()
