"""A machine whose clock was wrong and is set right, backwards or forwards, and what was written by the old time."""

import pytest
from sqlalchemy import select, update

from services.site import auth, jobs, leases, reconcile, workers
from services.site.db.models import Base, Job, Lockout, Worker, new_id
from services.site.errors import Refusal
from tests.services.conftest import SiteKit

LEASE, HOURS = 30.0, 3 * 3600.0
KEY = b"k" * 32


def set_back(site: SiteKit, seconds: float = HOURS) -> None:
    """Let all times in the database be ahead, as after a clock was set back by `seconds`."""
    with site.database.write() as session:
        for table in Base.metadata.sorted_tables:
            moved = {c.name: c + seconds for c in table.c if c.name in TIMES}
            if moved and table.name != "audit":
                session.execute(update(table).values(moved))


TIMES = (
    "lease_until", "leased_at", "not_before", "rung_at", "queued_at", "started_at", "finished_at", "created_at", "seen_at",
    "until", "since", "expires_at", "at",
)  # fmt: skip


def submit(site: SiteKit, gpus: int = 1) -> str:
    with site.database.write() as session:
        return jobs.submit(session, kind="preflight", params={}, actor="test", key=None, body={}, gpus=gpus)[0].id


def claim(site: SiteKit) -> leases.Claim | None:
    with site.database.write() as session:
        return leases.claim(session, worker="w", host="h", devices=("cpu",), lease=LEASE)


def expire(site: SiteKit) -> list[str]:
    with site.database.write() as session:
        return [job.id for job in leases.expire(session, 3)]


def test_a_job_held_until_hours_from_now_goes_back_to_the_queue_and_its_device_is_free(site: SiteKit) -> None:
    job_id = submit(site)
    assert claim(site) is not None
    assert expire(site) == []
    set_back(site)
    assert expire(site) == [job_id]
    again = claim(site)
    assert again is not None
    assert (again.job_id, again.devices) == (job_id, ("cpu",))


def test_a_device_leased_until_hours_from_now_is_free_without_a_reconciler(site: SiteKit) -> None:
    submit(site), submit(site)
    assert claim(site) is not None
    assert claim(site) is None
    set_back(site)
    assert claim(site) is not None


def test_a_cancel_of_a_worker_that_is_gone_ends(site: SiteKit) -> None:
    job_id = submit(site)
    claim(site)
    set_back(site)
    with site.database.write() as session:
        jobs.cancel(session, job_id, "test")
    expire(site)
    assert site.job(job_id).state == "cancelled"


def test_a_crashed_job_does_not_rest_for_hours_and_is_rung_for(site: SiteKit) -> None:
    job_id = submit(site)
    held = claim(site)
    with site.database.write() as session:
        leases.requeue(session, leases.held(session, held), {"code": "process_crashed", "message": "-"}, 3)
    assert claim(site) is None, "it rests a few seconds"
    set_back(site)
    with site.database.write() as session:
        assert jobs.not_rung(session, 15.0, 10) == [job_id]
    assert claim(site) is not None


def test_workers_of_the_future_are_not_alive(site: SiteKit) -> None:
    with site.database.write() as session:
        workers.seen(session, "old", {})
    set_back(site)
    with site.database.write() as session:
        workers.seen(session, "new", {})
        assert [row.id for row in workers.lately(session, 30)] == ["new"]
        assert workers.idle(session, 30) == 1
        workers.forget(session)
        session.expire_all()
        assert list(session.scalars(select(Worker.id))) == ["new"]


def test_lockouts_and_tokens(site: SiteKit) -> None:
    with site.database.write() as session:
        for _ in range(10):
            auth.note_failure(session, "10.0.0.1", 300)
        with pytest.raises(Refusal):
            auth.check_lockout(session, "10.0.0.1", 10, 300)
        _, limited = auth.create_token(session, KEY, "limited", "viewer", 30)
        _, endless = auth.create_token(session, KEY, "endless", "viewer")
        assert auth.authenticate(session, KEY, limited).name == "limited"
    set_back(site)
    with site.database.write() as session:
        auth.check_lockout(session, "10.0.0.1", 10, 300)
        assert auth.note_failure(session, "10.0.0.2", 300) == 1
        assert session.get(Lockout, "10.0.0.1") is None
        assert auth.authenticate(session, KEY, endless).name == "endless"
        with pytest.raises(Refusal, match="expired"):  # whether its time is up, nobody knows
            auth.authenticate(session, KEY, limited)


def test_the_newest_row_has_the_last_id_whatever_the_clock_said(site: SiteKit, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.site.db import models

    late = int.from_bytes(b"\x0f" * 6) << 64
    with site.database.write() as session:
        session.add(Job(id=f"job-{late:028x}", kind="preflight", params={}, created_by="x", body_digest="-"))
        session.flush()
        first = jobs.submit(session, kind="preflight", params={}, actor="x", key=None, body={})[0].id
        second = jobs.submit(session, kind="preflight", params={}, actor="x", key=None, body={})[0].id
    assert f"job-{late:028x}" < first < second
    monkeypatch.setattr(models, "_newest", 0)
    assert new_id("bundle") < "bundle-" + "0f" * 6, "ids of other tables go by the clock"


def test_the_reconciler_gives_workers_time_after_a_jump(site: SiteKit, monkeypatch: pytest.MonkeyPatch) -> None:
    monotonic = [1000.0]
    monkeypatch.setattr(reconcile.time, "monotonic", lambda: monotonic[0])
    watch = reconcile._Watch(site.database, 5.0)
    assert watch.jumped(), "nobody knows what was before"
    assert not watch.jumped()
    for jump in (-HOURS, HOURS):
        monotonic[0] -= jump
        assert watch.jumped()
        assert not watch.jumped()
