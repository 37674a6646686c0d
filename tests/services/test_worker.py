"""Worker processes that are killed, stopped, cut off from their queue: under Celery with Redis, and polling."""

import contextlib
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from services.site import jobs
from services.site.db.models import Checkpoint
from services.site.dispatch import doorbell
from services.site.reconcile import reconcile_once
from tests.conftest import Toy
from tests.ports import BROKER
from tests.services.conftest import SiteKit
from tests.services.processes import end, ended, process, start, step_of, trainings, until

LONG = {"num_mimgs": 960e-6, "batch_size": 8, "log_every_n_steps": 1, "checkpoint_seconds": 0.5}


@pytest.fixture
def broker() -> Iterator[str]:
    client = redis.Redis.from_url(BROKER)
    try:
        client.ping()
    except redis.ConnectionError as error:
        pytest.skip(f"Redis is not at {BROKER}: {error}")
    client.flushdb()
    yield BROKER
    client.flushdb()
    client.close()


@pytest.fixture(params=["poll", "celery"])
def worker_module(request: pytest.FixtureRequest) -> tuple[str, dict[str, str]]:
    """Module and extra variables of a worker."""
    if request.param == "poll":
        return "services.trainer.poll", {}
    return "services.trainer.worker", {"RELAY_BROKER_URL": request.getfixturevalue("broker")}


@contextlib.contextmanager
def ringing(site: SiteKit, variables: dict[str, str]) -> Iterator[object]:
    """A doorbell and one look of the reconciler at a time."""
    bell = doorbell(variables.get("RELAY_BROKER_URL"))
    yield lambda: reconcile_once(site.database, bell, site.settings)
    bell.close()


def long_job(site: SiteKit, toy: Toy, **train: float) -> str:
    return site.submit_train(site.add_run(toy.write(sites=1, train={**LONG, **train}), sites=1))


def test_a_killed_worker_leaves_no_orphan_and_its_job_goes_on(
    small_site: SiteKit, toy: Toy, tmp_path: Path, worker_module: tuple[str, dict[str, str]]
) -> None:
    module, variables = worker_module
    job_id = long_job(small_site, toy)
    with ringing(small_site, variables) as look:
        first = start(small_site, module, log=tmp_path / "first.log", **variables)
        until(lambda: look() and step_of(small_site, job_id) >= 20, 90, "training begins")
        os.kill(first.pid, signal.SIGKILL)
        until(lambda: not trainings(small_site), 5, "the training dies with its worker")
        end(first)
        with process(small_site, module, log=tmp_path / "second.log", **variables):
            until(lambda: look() and ended(small_site, job_id), 120, "the job ends")
    job = small_site.job(job_id)
    assert (job.state, job.attempt) == ("succeeded", 2)
    with small_site.database.read() as session:
        assert session.query(Checkpoint).filter_by(job_id=job_id).count() == 1
    assert trainings(small_site) == []


def test_sigterm_hands_the_job_back_with_a_fresh_checkpoint(
    small_site: SiteKit, toy: Toy, tmp_path: Path, worker_module: tuple[str, dict[str, str]]
) -> None:
    module, variables = worker_module
    job_id = long_job(small_site, toy, num_mimgs=8000e-6)  # it is never waited for to its end
    with ringing(small_site, variables) as look, process(small_site, module, log=tmp_path / "log", **variables) as worker:
        until(lambda: look() and step_of(small_site, job_id) >= 10, 90, "training begins")
        os.kill(worker.pid, signal.SIGTERM)
        until(lambda: worker.poll() is not None, 20, "the worker leaves")
    job = small_site.job(job_id)
    assert (job.state, job.tries) == ("queued", 0)
    assert trainings(small_site) == []
    assert list((small_site.settings.work_folder / job_id).rglob("step-*.safetensors"))


def test_a_frozen_worker_that_wakes_too_late_writes_nothing(
    small_site: SiteKit, toy: Toy, tmp_path: Path, worker_module: tuple[str, dict[str, str]]
) -> None:
    module, variables = worker_module
    job_id = long_job(small_site, toy)
    with ringing(small_site, variables) as look, contextlib.ExitStack() as stack:
        frozen = stack.enter_context(process(small_site, module, log=tmp_path / "frozen.log", **variables))
        until(lambda: look() and step_of(small_site, job_id) >= 10, 90, "training begins")
        os.killpg(frozen.pid, signal.SIGSTOP)
        stack.enter_context(process(small_site, module, log=tmp_path / "other.log", **variables))
        until(lambda: look() and small_site.job(job_id).attempt == 2, 60, "another worker takes the job")
        os.killpg(frozen.pid, signal.SIGCONT)
        until(lambda: look() and ended(small_site, job_id), 120, "the job ends")
        log = tmp_path / "frozen.log"
        until(lambda: "taken over" in log.read_text(), 20, "the late worker notices")
    assert (small_site.job(job_id).state, small_site.job(job_id).attempt) == ("succeeded", 2)
    with small_site.database.read() as session:
        assert session.query(Checkpoint).filter_by(job_id=job_id).count() == 1


def test_a_lost_message_delays_a_job_and_no_more(small_site: SiteKit, toy: Toy, tmp_path: Path, broker: str) -> None:
    variables = {"RELAY_BROKER_URL": broker}
    with ringing(small_site, variables) as look, process(
        small_site, "services.trainer.worker", log=tmp_path / "log", **variables
    ):  # fmt: skip
        bell = doorbell(broker)
        job_id = small_site.submit_train(small_site.add_run(toy.write(sites=1), sites=1))
        bell.ring(job_id)
        bell.close()
        redis.Redis.from_url(broker).flushdb()
        until(lambda: look() and ended(small_site, job_id), 90, "the job ends")
    assert small_site.job(job_id).state == "succeeded"


def test_a_ring_wakes_a_celery_worker_at_once(small_site: SiteKit, toy: Toy, tmp_path: Path, broker: str) -> None:
    variables = {"RELAY_BROKER_URL": broker}
    with process(small_site, "services.trainer.worker", log=tmp_path / "log", **variables):
        until(lambda: "ready" in (tmp_path / "log").read_text(), 60, "the worker is ready")
        job_id = small_site.submit_train(small_site.add_run(toy.write(sites=1), sites=1))
        bell = doorbell(broker)
        bell.ring(job_id)
        until(lambda: small_site.job(job_id).state == "running", 60, "it is claimed without a reconciler")
        bell.close()
        with small_site.database.write() as session:
            jobs.cancel(session, job_id, "test")
        until(lambda: ended(small_site, job_id), 30, "it is cancelled")


def test_a_dead_broker_delays_no_request(small_site: SiteKit) -> None:
    bell = doorbell("redis://127.0.0.1:1/0")
    took = until(lambda: [bell.ring(f"job-{uuid.uuid4()}") for _ in range(100)], 1, "rings return at once")
    assert took < 0.5
