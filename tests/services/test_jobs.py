"""The job state table, on SQLite and PostgreSQL."""

import itertools
import shutil
import threading
import uuid
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from services.site import audit, jobs, leases
from services.site.db.models import AuditRecord, DeviceLease, Job, JobEvent
from services.site.errors import Refusal
from services.site.leases import Claim, LeaseLost
from services.site.settings import load_settings
from tests.services.conftest import SiteKit, open_site


def submit(site: SiteKit, gpus: int = 0, **options: object) -> str:
    with site.database.write() as session:
        values: dict = {"kind": "preflight", "params": {}, "actor": "test", "key": None, "body": {}, "gpus": gpus, **options}
        return jobs.submit(session, **values)[0].id


def submit_within(session: Session) -> str:
    """Queue a job in a transaction that is open."""
    return jobs.submit(session, kind="preflight", params={}, actor="test", key=None, body={}, gpus=1)[0].id


def claim(site: SiteKit, worker: str = "w", devices: tuple[str, ...] = ("cpu",), lease: float = 30) -> Claim | None:
    with site.database.write() as session:
        return leases.claim(session, worker=worker, host="h", devices=devices, lease=lease)


def let_leases_run_out(site: SiteKit) -> None:
    with site.database.write() as session:
        session.execute(update(Job).where(Job.lease_until.is_not(None)).values(lease_until=1.0))
        session.execute(update(DeviceLease).values(until=1.0))


def expire(site: SiteKit, tries: int = 3) -> int:
    with site.database.write() as session:
        return len(leases.expire(session, tries))


def test_the_oldest_job_is_claimed_once(site: SiteKit) -> None:
    first, second = submit(site), submit(site)
    claims = [claim(site), claim(site), claim(site)]
    assert [c and c.job_id for c in claims] == [first, second, None]
    assert site.job(first).state == "running"


def test_many_workers_at_once_take_each_job_once(site: SiteKit) -> None:
    wanted = {submit(site) for _ in range(30)}
    taken: list[str] = []

    def work(name: str) -> None:
        while got := claim(site, name):
            taken.append(got.job_id)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 30
    assert set(taken) == wanted


def test_one_device_holds_one_training(site: SiteKit) -> None:
    first, second = submit(site, gpus=1), submit(site, gpus=1)
    other = submit(site)
    one = claim(site)
    assert one is not None
    assert one.devices == ("cpu",)
    passing = claim(site)
    assert passing is not None
    assert passing.job_id == other  # needs no device
    assert claim(site) is None
    with site.database.write() as session:
        leases.finish(session, one, "succeeded")
    after = claim(site)
    assert after is not None
    assert after.job_id == second
    assert site.job(first).state == "succeeded"


def test_a_lease_is_not_renewed_once_another_job_has_its_device(site: SiteKit) -> None:
    """The device's own lease ran out while the job's did not, and another job took the device: two may not train on it."""
    job_id = submit(site, gpus=1)
    old = claim(site)
    assert old is not None
    with site.database.write() as session:
        row = session.scalars(select(DeviceLease)).one()
        row.job_id, row.attempt = submit_within(session), 1
    before = site.job(job_id).lease_until
    with pytest.raises(LeaseLost), site.database.write() as session:
        leases.held(session, old, 300)
    assert site.job(job_id).lease_until == before
    with site.database.read() as session:
        assert session.scalars(select(DeviceLease)).one().job_id != job_id
    with site.database.write() as session:  # without renewing it may still say how it ended
        assert leases.finish(session, old, "failed", error={"code": "hung", "message": "-"}).state == "failed"
    with site.database.read() as session:  # and that frees nobody else's device
        assert len(session.scalars(select(DeviceLease)).all()) == 1


def test_a_job_for_two_devices_waits_for_both(site: SiteKit) -> None:
    submit(site, gpus=1)
    pair = submit(site, gpus=2)
    gpus = ("cuda:0", "cuda:1")
    one = claim(site, devices=gpus)
    assert claim(site, devices=gpus) is None
    assert one is not None
    with site.database.write() as session:
        leases.finish(session, one, "succeeded")
    both = claim(site, devices=gpus)
    assert both is not None
    assert (both.job_id, both.devices) == (pair, gpus)


def test_a_late_writer_changes_nothing(site: SiteKit) -> None:
    job_id = submit(site, gpus=1)
    old = claim(site)
    assert old is not None
    let_leases_run_out(site)
    assert expire(site) == 1
    new = claim(site, "other")
    assert new is not None
    assert new.attempt == old.attempt + 1
    for write in (
        lambda s: leases.held(s, old, 30, progress={"step": 9}),
        lambda s: leases.finish(s, old, "succeeded", result={"from": "old"}),
        lambda s: leases.finish(s, old, "failed", error={"code": "hung", "message": ""}),
        lambda s: leases.give_back(s, old, "late"),
    ):
        with pytest.raises(LeaseLost), site.database.write() as session:
            write(session)
    job = site.job(job_id)
    assert (job.state, job.worker, job.result, job.progress) == ("running", "other", None, None)


def test_a_job_is_given_up_after_three_lost_workers(site: SiteKit) -> None:
    job_id = submit(site)
    for _ in range(3):
        assert claim(site) is not None
        let_leases_run_out(site)
        assert expire(site) == 1
    job = site.job(job_id)
    assert (job.state, job.error["code"]) == ("failed", "worker_lost")
    assert claim(site) is None


def test_handing_back_counts_as_no_attempt(site: SiteKit) -> None:
    job_id = submit(site)
    for _ in range(5):
        got = claim(site)
        assert got is not None
        with site.database.write() as session:
            leases.give_back(session, got, "the worker was stopped")
    assert (site.job(job_id).state, site.job(job_id).tries) == ("queued", 0)


@pytest.mark.parametrize("moment", ["queued", "running", "lost", "ended"])
def test_cancel_at_every_moment(site: SiteKit, moment: str) -> None:
    job_id = submit(site)
    got = None if moment == "queued" else claim(site)
    if moment == "ended":
        assert got is not None
        with site.database.write() as session:
            leases.finish(session, got, "succeeded")
        with pytest.raises(Refusal) as caught, site.database.write() as session:
            jobs.cancel(session, job_id, "test")
        assert caught.value.status == 409
        assert site.job(job_id).state == "succeeded"
        return
    with site.database.write() as session:
        jobs.cancel(session, job_id, "test")
    if moment == "queued":
        assert site.job(job_id).state == "cancelled"
        return
    assert site.job(job_id).state == "cancelling"
    with site.database.write() as session:
        jobs.cancel(session, job_id, "test")  # asking twice is fine
    if moment == "lost":
        let_leases_run_out(site)
        expire(site)
    else:
        assert got is not None
        with site.database.write() as session:
            leases.finish(session, got, "cancelled")
    assert site.job(job_id).state == "cancelled"


def test_the_same_key_gives_the_same_job(site: SiteKit) -> None:
    first = submit(site, key="k", body={"a": 1})
    assert submit(site, key="k", body={"a": 1}) == first
    assert submit(site, key="k", body={"a": 1}, actor="somebody else") != first
    with pytest.raises(Refusal) as caught:
        submit(site, key="k", body={"a": 2})
    assert caught.value.code == "idempotency_key_reused"


def test_the_same_key_at_once_from_many_threads(site: SiteKit) -> None:
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(submit(site, key="k", body={}))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 20
    assert len(set(made)) == 1


def test_a_full_queue_refuses(site: SiteKit) -> None:
    submit(site)
    with pytest.raises(Refusal) as caught:
        submit(site, queue_limit=1)
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "60")


def test_the_doorbell_rings_again_for_the_oldest(site: SiteKit) -> None:
    waiting = [submit(site) for _ in range(3)]
    with site.database.write() as session:
        assert jobs.not_rung(session, 15, 5) == []
        session.execute(update(Job).values(rung_at=1.0))
    with site.database.write() as session:
        assert set(jobs.not_rung(session, 15, 2)) == set(waiting[:2])
        assert jobs.not_rung(session, 15, 5) == waiting[2:]
        assert jobs.not_rung(session, 15, 5) == []


def test_two_reconcilers_at_once_take_a_job_back_once(site: SiteKit) -> None:
    job_id = submit(site)
    claim(site)
    let_leases_run_out(site)
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(expire(site))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 1
    assert (site.job(job_id).state, site.job(job_id).tries) == ("queued", 1)


class JobLife(RuleBasedStateMachine):
    """Anybody does anything at any time; each accepted job still has one state, one holder, one end at a time."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.home = self.folder / uuid.uuid4().hex  # a site of its own: what one example leaves is no other's
        self.stack = ExitStack()
        self.site = self.stack.enter_context(open_site(load_settings(embedded=True, home=self.home, device="cpu")))
        self.claims: list[Claim] = []
        self.ended: dict[str, int] = {}
        self.ids: list[str] = []
        self.refusals: set[str] = set()

    def teardown(self) -> None:
        self.stack.close()
        shutil.rmtree(self.home)

    @rule(gpus=st.integers(0, 1))
    def submits(self, gpus: int) -> None:
        self.ids.append(submit(self.site, gpus))

    @rule()
    def claims_one(self) -> None:
        if got := claim(self.site, f"w{len(self.claims)}"):
            self.claims.append(got)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), state=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def finishes(self, data: st.DataObject, state: str) -> None:
        got = data.draw(st.sampled_from(self.claims))
        try:
            with self.site.database.write() as session:
                leases.finish(session, got, state)  # type: ignore[arg-type]
        except LeaseLost:
            return
        except Refusal as error:
            self.refusals.add(error.code)
            return
        key = f"{got.job_id}/{got.attempt}"
        self.ended[key] = self.ended.get(key, 0) + 1

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), act=st.sampled_from([jobs.cancel, jobs.retry]))
    def asks(self, data: st.DataObject, act: object) -> None:
        job_id = data.draw(st.sampled_from(self.ids))
        try:
            with self.site.database.write() as session:
                act(session, job_id, "test")  # type: ignore[operator]
        except Refusal as error:
            self.refusals.add(error.code)

    @rule()
    def leases_run_out(self) -> None:
        let_leases_run_out(self.site)
        expire(self.site)

    @invariant()
    def all_is_well(self) -> None:
        assert all(count == 1 for count in self.ended.values())
        assert self.refusals <= {"conflict"}
        with self.site.database.read() as session:
            rows = session.scalars(select(Job).where(Job.id.in_(self.ids))).all()
            assert len(rows) == len(self.ids)
            for row in rows:
                assert (row.state in jobs.HELD) == (row.lease_until is not None)
                assert (row.state in jobs.TERMINAL) == (row.finished_at is not None)
                events = session.scalars(select(JobEvent.seq).where(JobEvent.job_id == row.id).order_by(JobEvent.seq)).all()
                assert list(events) == list(range(1, row.events + 1))
            assert len({c.attempt for c in self.claims if c.job_id == (self.ids or [""])[0]}) <= 50
            length, _ = audit.verify(session)
            assert length == session.query(AuditRecord).count()


def test_any_order_of_events_keeps_the_invariants(tmp_path: Path) -> None:
    JobLife.folder = tmp_path
    machine = JobLife.TestCase
    machine.settings = settings(
        max_examples=15,
        stateful_step_count=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    case = machine("runTest")
    case.runTest()


def test_ids_sort_by_time() -> None:
    from services.site.db.models import new_id

    ids = [new_id("job") for _ in range(10_000)]
    assert all(a < b for a, b in itertools.pairwise(ids))
    assert {len(found) for found in ids} == {len("job-") + 28}
