"""Redis as docker/redis.sh starts it: who may ring, who may hear, and what nobody may."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from services.site import celery_app, doorbell
from tests.conftest import Toy
from tests.ports import BROKER, free_port
from tests.services.conftest import SiteKit
from tests.services.processes import ended, process, until

SCRIPT = Path(__file__).parents[2] / "docker/redis.sh"
PASSWORDS = {"api": "a password of the API", "worker": "a password of the workers"}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Redis that the script started."""
    folder, number = tmp_path_factory.mktemp("redis"), free_port()
    for name, password in PASSWORDS.items():
        (folder / f"broker_{name}_password").write_text(password + "\n")
    variables = {**os.environ, "SECRETS": str(folder), "RUN": str(folder)}
    command = ["sh", str(SCRIPT), "bind 127.0.0.1", f"port {number}"]
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server")
    with subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL) as server:
        try:
            until(lambda: _answers(number), 20, "Redis answers")
            yield number
        finally:
            server.terminate()


def _answers(number: int) -> bool:
    with contextlib.suppress(redis.ConnectionError), redis.Redis(port=number) as client:
        with contextlib.suppress(redis.AuthenticationError):
            client.ping()
        return True
    return False


def client(port: int, part: str | None) -> redis.Redis:
    """A connection as one of the users."""
    who = {"username": f"relay-{part}", "password": PASSWORDS[part]} if part else {}
    return redis.Redis(port=port, retry=Retry(NoBackoff(), 0), **who)


def url(port: int, part: str) -> str:
    """What the settings make of user and password."""
    return f"redis://relay-{part}:{PASSWORDS[part].replace(' ', '%20')}@127.0.0.1:{port}/0"


FORBIDDEN = [
    "FLUSHALL", "FLUSHDB", "CONFIG GET requirepass", "ACL LIST", "SHUTDOWN NOSAVE", "KEYS *", "SCAN 0",
    "MONITOR", "CLIENT LIST", "CLIENT KILL ID 1", "SAVE", "REPLICAOF NO ONE", "MODULE LIST", "INFO", "GET secret",
    "SET secret 1", "PUBLISH /0.celery.pidbox x", "SUBSCRIBE /0.celeryev/worker.heartbeat", "SADD _other x", "EVAL return 0",
]  # fmt: skip


@pytest.mark.parametrize("part", [None, "api", "worker"])
def test_nobody_may_do_what_ringing_does_not_take(port: int, part: str | None) -> None:
    with client(port, part) as connection:
        for command in FORBIDDEN + ([] if part == "worker" else ["BRPOP relay 1", "HSET unacked a b", "DEL relay"]):
            with pytest.raises((redis.exceptions.NoPermissionError, redis.exceptions.AuthenticationError)):
                connection.execute_command(*command.split(" "))


def test_a_worker_hears_what_the_api_rings_and_obeys_nobody(
    small_site: SiteKit, toy: Toy, tmp_path: Path, port: int
) -> None:
    with process(
        small_site, "services.trainer.worker", log=tmp_path / "log", RELAY_BROKER_URL=url(port, "worker")
    ) as worker:
        log = tmp_path / "log"
        until(lambda: "ready" in log.read_text(), 60, "the worker is ready")
        job_id = small_site.submit_train(small_site.add_run(toy.write(sites=1), sites=1))
        bell = doorbell(url(port, "api"))
        bell.ring(job_id)
        until(lambda: ended(small_site, job_id), 60, "the job ends without a reconciler")
        bell.close()
        assert small_site.job(job_id).state == "succeeded"
        assert worker.poll() is None
        assert "NoPermission" not in log.read_text()
    with client(port, "worker") as connection:
        assert connection.llen("relay") == 0


def test_workers_take_no_orders_from_the_queue(small_site: SiteKit, tmp_path: Path) -> None:
    """On a Redis whose one user may do everything: Celery's remote control would stop them."""
    try:
        redis.Redis.from_url(BROKER).ping()
    except redis.ConnectionError as error:
        pytest.skip(f"Redis is not at {BROKER}: {error}")
    log = tmp_path / "log"
    with process(small_site, "services.trainer.worker", log=log, RELAY_BROKER_URL=BROKER) as worker:
        until(lambda: "ready" in log.read_text(), 60, "the worker is ready")
        app = celery_app(BROKER)
        assert app.control.ping(timeout=0.5) == []
        app.control.shutdown()
        time.sleep(1)
        assert worker.poll() is None
