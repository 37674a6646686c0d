"""Volumes that vanish: a folder that is moved away and leaves an empty one in its place, as an unmounted volume does."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import delete

from services.site import jobs, sweep, volumes
from services.site.db.models import Dataset, JobEvent, Volume
from services.site.errors import Refusal
from services.site.settings import load_settings
from services.trainer.worker_loop import WorkerLoop
from tests.services.conftest import SiteKit, open_site
from tests.services.test_sweep import actions, keep


class Mount:
    """A folder that can go away and come back."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.hidden = folder, folder.with_name(f"{folder.name}-unmounted")

    def unmount(self) -> None:
        self.folder.rename(self.hidden)
        self.folder.mkdir()

    def mount(self) -> None:
        self.folder.rmdir()  # nothing was written beneath the mount point
        self.hidden.rename(self.folder)


@pytest.fixture
def mounts(small_site: SiteKit, phantom_data: Path, tmp_path: Path) -> dict[str, Mount]:
    """The volumes of `small_site`."""
    small_site.settings.data_root = shutil.copytree(phantom_data, tmp_path / "data")
    return {name: Mount(volumes.folder_of(small_site.settings, name)) for name in volumes.ALL}


@contextmanager
def station(site: SiteKit, leaving: Callable[[], bool] = lambda: False) -> Iterator[WorkerLoop]:
    loop = WorkerLoop(site.settings, leaving)
    try:
        yield loop
    finally:
        loop.close()


def preflight(site: SiteKit) -> str:
    """A queued job that reads the data, and whose previews go into the store."""
    with site.database.write() as session:
        if not (row := session.query(Dataset).first()):
            session.add(row := Dataset(name="Domain1", path="Domain1", layout="fundus", options={}))
            session.flush()
        params = {"dataset": row.id, "previews": 1}
        job, _ = jobs.submit(session, kind="preflight", params=params, actor="test", key=None, body={})
    return job.id


def last_event(site: SiteKit, job_id: str) -> dict:
    with site.database.read() as session:
        return session.query(JobEvent).filter_by(job_id=job_id).order_by(JobEvent.seq.desc()).first().data


def test_no_job_is_claimed_while_a_volume_is_away(small_site: SiteKit, mounts: dict[str, Mount]) -> None:
    job_id = preflight(small_site)
    with station(small_site) as worker:
        for name, mount in mounts.items():
            mount.unmount()
            assert not worker.work_once(), name
            problems = volumes.away(small_site.database, small_site.settings, *volumes.ALL)
            assert list(problems) == [name]
            assert f"`{name}`" in problems[name]
            mount.mount()
        assert (small_site.job(job_id).state, small_site.job(job_id).attempt) == ("queued", 0)
        assert worker.work_once()
    assert small_site.job(job_id).state == "succeeded"


@pytest.mark.parametrize("name", volumes.ALL)
def test_a_running_job_waits_for_a_volume_that_vanishes(small_site: SiteKit, mounts: dict[str, Mount], name: str) -> None:
    mount, done = mounts[name], threading.Event()
    small_site.settings.max_tries = 1  # an outage is no try

    def vanish() -> bool:
        """Asked by the worker, and so while the job's process runs."""
        running = bool(list(small_site.settings.work_folder.glob("job-*/attempt-*/process.json")))
        if running and not done.is_set():
            done.set()
            mount.unmount()
        return False

    job_id = preflight(small_site)
    with station(small_site, vanish) as worker:
        assert worker.work_once()
        assert done.is_set()
        job = small_site.job(job_id)
        assert (job.state, job.tries) == ("queued", 0)
        assert last_event(small_site, job_id)["code"] == "volume_away"
        assert f"`{name}`" in last_event(small_site, job_id)["message"]
        assert list(mount.folder.iterdir()) == []
        assert not worker.work_once()
        mount.mount()
        if name == "work":  # once is enough
            assert worker.work_once()
            assert small_site.job(job_id).state == "succeeded"


def test_a_cancelled_job_ends_although_a_volume_is_away(small_site: SiteKit, mounts: dict[str, Mount]) -> None:
    job_id = preflight(small_site)

    def vanish() -> bool:
        if mounts["work"].folder.joinpath(job_id).exists():
            with small_site.database.write() as session:
                jobs.cancel(session, job_id, "test")
            mounts["work"].unmount()
        return False

    with station(small_site, vanish) as worker:
        assert worker.work_once()
    assert small_site.job(job_id).state == "cancelled"


def test_nothing_is_written_beneath_the_mount_point(small_site: SiteKit, mounts: dict[str, Mount]) -> None:
    digest = keep(small_site, b"there before")
    orphan, _ = small_site.store.put([b"nobody's"])
    mounts["artifacts"].unmount()
    for attempt in (lambda: small_site.store.put([b"new"]), lambda: list(small_site.store.read(digest))):
        with pytest.raises(Refusal) as caught:
            attempt()
        assert caught.value.code == "volume_away"
    assert small_site.store.free_mib() == 0
    sweep.remember(small_site.database, small_site.settings)
    assert sweep.sweep(small_site.database, small_site.settings, grace=-1) == []
    mounts["artifacts"].mount()
    assert small_site.store.path(orphan).exists()
    assert b"".join(small_site.store.read(digest)) == b"there before"


def test_an_upload_that_the_volume_leaves_is_not_kept_beneath(small_site: SiteKit, mounts: dict[str, Mount]) -> None:
    with small_site.store.incoming() as file:
        file.write(b"half")
        mounts["artifacts"].unmount()
        with pytest.raises(Refusal) as caught:
            file.keep()
    assert caught.value.code == "volume_away"
    mounts["artifacts"].mount()


def test_another_sites_volume_is_not_ours(small_site: SiteKit, mounts: dict[str, Mount], tmp_path: Path) -> None:
    settings = load_settings(embedded=True, home=tmp_path / "other", device="cpu")
    with open_site(settings) as other:
        keep(other, b"theirs")
        mounts["artifacts"].folder.rename(mounts["artifacts"].hidden)
        other.store.folder.rename(small_site.store.folder)
        found = volumes.away(small_site.database, small_site.settings, "artifacts")
        assert "another site's" in found["artifacts"]
        assert sweep.sweep(small_site.database, small_site.settings, grace=-1) == []
        with pytest.raises(Refusal, match="another site's"):
            sweep.confirm(small_site.database, small_site.settings, "admin")
        assert sweep.confirm(small_site.database, small_site.settings, "admin", adopt=True) == ["artifacts"]
        assert volumes.away(small_site.database, small_site.settings, "artifacts") == {}
        assert actions(small_site)[-1] == "artifacts.confirm"


def test_a_site_from_before_the_marks_is_marked_by_what_it_holds(site: SiteKit) -> None:
    digest = keep(site, b"from before")
    mark = site.store.folder / ".relay-volume"
    mark.unlink()
    with site.database.write() as session:
        session.execute(delete(Volume))
    site.store.path(digest).rename(site.settings.home / "elsewhere")
    assert "artifacts" in volumes.away(site.database, site.settings, "artifacts")
    assert not mark.exists()
    (site.settings.home / "elsewhere").rename(site.store.path(digest))
    assert volumes.away(site.database, site.settings, "artifacts") == {}
    assert mark.exists()


def test_a_start_that_broke_off_while_marking_is_no_outage(small_site: SiteKit) -> None:
    with small_site.database.write() as session:
        session.execute(delete(Volume))  # the mark was written, its row was not
    assert volumes.away(small_site.database, small_site.settings, *volumes.WRITTEN) == {}


def test_data_are_there_while_any_registered_folder_is(small_site: SiteKit, mounts: dict[str, Mount]) -> None:
    with small_site.database.write() as session:
        session.add(Dataset(name="gone", path="gone", layout="fundus", options={}))
    assert "data" in volumes.away(small_site.database, small_site.settings, "data")
    with small_site.database.write() as session:
        session.add(Dataset(name="there", path="Domain1", layout="fundus", options={}))
    assert volumes.away(small_site.database, small_site.settings, "data") == {}


def test_a_heartbeat_says_which_volume_its_worker_lacks(small_site: SiteKit, mounts: dict[str, Mount]) -> None:
    mounts["work"].unmount()
    with station(small_site) as worker:
        assert list(worker._facts()["volumes"]) == ["work"]
    mounts["work"].mount()
