"""A whole site under random faults, and what must be true afterwards.

    python -m tests.services.chaos --faults 200 --seed 1 [--postgresql]

Real processes: API, a reconciler beside the API's own, two Celery workers, a Redis and, where asked for, a PostgreSQL of
its own, trainings at toy size.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import redis
from sqlalchemy import func, select, update
from sqlalchemy.exc import SQLAlchemyError

from relay_core.data import make_phantoms
from relay_core.errors import RelayError
from services.site import audit, auth, jobs, leases
from services.site.db.models import AuditRecord, Base, Checkpoint, Evaluation, Job, JobEvent
from services.site.settings import load_settings
from tests import postgres
from tests.conftest import Toy
from tests.ports import free_port
from tests.services.conftest import SiteKit, open_site
from tests.services.processes import end, start, trainings, until
from tests.services.test_clock import TIMES
from tests.services.volumes import fill, small_volume, vanished

TRAIN = {"num_mimgs": 1200e-6, "batch_size": 8, "log_every_n_steps": 5, "checkpoint_seconds": 0.5}


class Chaos:
    """Processes of a site, the jobs that it accepted, and the faults done to it."""

    def __init__(
        self, site: SiteKit, folder: Path, run: str, seed: int, volumes: list[Path],
        server: postgres.PrivateServer | None = None, running: subprocess.Popen | None = None,
    ) -> None:  # fmt: skip
        self.server = server
        self.site, self.folder, self.random, self.volumes = site, folder, random.Random(seed), volumes
        self.port, self.redis_port = free_port(), free_port()
        self.counts: collections.Counter[str] = collections.Counter()
        self.accepted: dict[str, str] = {}
        self.takeovers: list[float] = []
        self.backups = 0
        self.running: dict[str, subprocess.Popen] = {} if running is None else {"postgresql": running}
        self.due: dict[str, float] = {}
        with site.database.write() as session:
            _, token = auth.create_token(session, site.settings.key, "chaos", "operator")
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers={"Authorization": f"Bearer {token}"}, timeout=5
        )
        self.run_id = run
        self.broker = {"RELAY_BROKER_URL": f"redis://127.0.0.1:{self.redis_port}/0"}
        self.commands: dict[str, Callable[[], subprocess.Popen]] = {
            **({"postgresql": server.start} if server is not None else {}),
            "redis": self._redis,
            "api": lambda: self._start("api", "services.api", RELAY_PORT=str(self.port)),
            "reconciler": lambda: self._start("reconciler", "relay_core", "reconcile"),
            "worker-1": lambda: self._start("worker-1", "services.trainer.worker"),
            "worker-2": lambda: self._start("worker-2", "services.trainer.worker"),
        }

    def _start(self, name: str, module: str, *arguments: str, **variables: str) -> subprocess.Popen:
        return start(self.site, module, *arguments, log=self.folder / f"{name}.log", **self.broker, **variables)

    def _redis(self) -> subprocess.Popen:
        command = ["redis-server", "--port", str(self.redis_port), "--save", "", "--dir", str(self.folder)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)

    def tend(self) -> None:
        """What docker's restart policy does."""
        for name, command in self.commands.items():
            process = self.running.get(name)
            if process is not None and process.poll() is not None:
                del self.running[name]
                self.due.setdefault(name, time.monotonic() + self.random.random())
            if name not in self.running and time.monotonic() >= self.due.pop(name, 0.0):
                self.running[name] = command()

    def feed(self) -> None:
        """Keep a few jobs waiting or running; ask for one until it is accepted, always with the same key."""
        key = self.pending = getattr(self, "pending", None) or str(uuid.uuid4())
        try:
            with self.site.database.read() as session:
                active = session.scalar(select(func.count()).select_from(Job).where(Job.state.in_(jobs.ACTIVE))) or 0
        except SQLAlchemyError:
            return
        if active >= 3:
            return
        try:
            body = {"kind": "train", "run_id": self.run_id, "site": 1}
            answer = self.http.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": key})
        except httpx.HTTPError:
            return
        if answer.status_code == 202:
            self.accepted[key], self.pending = answer.json()["id"], None
        elif answer.status_code not in (503, 507):
            raise AssertionError(f"{answer.status_code}: {answer.text}")

    def fault(self) -> str:
        """One of the faults, at random."""
        kind = self.random.choices(
            ["kill training", "kill worker", "kill api", "kill reconciler", "freeze worker", "flush redis", "kill redis",
             "cancel", "fill disk", "hide volume", "set clock", "hang up", "restore", "kill postgresql"],
            [5, 5, 3, 2, 2, 3, 2, 3, 3 if self.volumes else 0, 3 if self.volumes else 0, 3, 3, 2, 4 if self.server else 0],
        )[0]  # fmt: skip
        done = getattr(self, "_" + kind.replace(" ", "_"))()
        if done:
            self.counts[kind] += 1
        return kind if done else ""

    def _kill(self, name: str) -> bool:
        process = self.running.get(name)
        if process is None or process.poll() is not None:
            return False
        os.kill(process.pid, signal.SIGKILL)  # the main process alone: what it leaves behind is part of the test
        process.wait()
        return True

    def _kill_training(self) -> bool:
        found = trainings(self.site)
        for pid in found[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(found)

    def _kill_worker(self) -> bool:
        return self._kill(self.random.choice(["worker-1", "worker-2"]))

    def _kill_api(self) -> bool:
        return self._kill("api")

    def _kill_reconciler(self) -> bool:
        return self._kill("reconciler")

    def _kill_redis(self) -> bool:
        return self._kill("redis")

    def _flush_redis(self) -> bool:
        try:
            return bool(redis.Redis(port=self.redis_port, socket_timeout=2).flushall())
        except redis.RedisError:
            return False

    def _freeze_worker(self) -> bool:
        name = self.random.choice(["worker-1", "worker-2"])
        process = self.running.get(name)
        if process is None or process.poll() is not None:
            return False
        group = process.pid
        os.killpg(group, signal.SIGSTOP)
        self._go_on(self.site.settings.lease * self.random.uniform(0.5, 2.5))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGCONT)
        return True

    def _fill_disk(self) -> bool:
        ballast = fill(self.random.choice(self.volumes))
        self._go_on(self.random.uniform(0.5, 5.0))
        ballast.unlink()
        return True

    def _hide_volume(self) -> bool:
        """Take a volume away for a while: nothing may be written to the folder that is left in its place."""
        with vanished(self.random.choice(self.volumes)) as place:
            self._go_on(self.random.uniform(0.5, 6.0))
            strays = sorted(path.name for path in place.iterdir())
        assert not strays, strays
        return True

    def _set_clock(self) -> bool:
        """Set the clock back or forward by hours, in half of the cases while the power is off.

        A machine's clock cannot be set in a test; what was written before is moved the other way instead.
        """
        seconds = self.random.choice([-3, 3]) * 3600.0
        if self.random.random() < 0.5:
            self._power_off()
        while True:
            try:
                with self._database_is_back(), self.site.database.write() as session:
                    for table in Base.metadata.sorted_tables:
                        moved = {c.name: c + seconds for c in table.c if c.name in TIMES}
                        if moved and table is not AuditRecord.__table__:
                            session.execute(update(table).values(moved))
                return True
            except (SQLAlchemyError, RelayError):  # somebody else writes the same rows in another order
                time.sleep(0.1)

    def _power_off(self) -> None:
        for name, process in self.running.items():
            if name not in ("postgresql", "redis"):
                end(process)

    def _restore(self) -> bool:
        """Back the site up while it works, and restore that some work later; jobs that were asked for since are gone."""
        self.backups += 1
        backup = self.folder / f"backup-{self.backups}"
        if self._relay("backup", "--out", str(backup)).returncode != 0:
            return False  # the database was away
        self._go_on(self.random.uniform(0.5, 5.0))
        self._power_off()
        self.site.database.close()
        time.sleep(self.site.settings.lately + 1)
        if self.server is not None:
            until(self.server.ready, 60, "the database answers")
        done = self._relay("restore", str(backup), "--replace")
        assert done.returncode == 0, done.stderr
        shutil.rmtree(backup)
        with self.site.database.read() as session:
            known = set(session.scalars(select(Job.id)))
        self.accepted = {key: job_id for key, job_id in self.accepted.items() if job_id in known}
        self._go_on(self.random.uniform(0.5, 5.0))
        with self._database_is_back():
            return self._relay("artifacts", "confirm").returncode == 0

    def _relay(self, *arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "relay_core", *arguments]
        return subprocess.run(command, env=self.site.environment(), capture_output=True, text=True, check=False)

    def _hang_up(self) -> bool:
        """What a terminal that closes sends: to a training, or to a worker."""
        found = trainings(self.site)
        worker = self.running.get(self.random.choice(["worker-1", "worker-2"]))
        targets = found[:1] if self.random.random() < 0.5 else [worker.pid] if worker else []
        for pid in targets:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)
        return bool(targets)

    def _kill_postgresql(self) -> bool:
        """Kill the database's main process, or restart it in order."""
        if self.random.random() < 0.5:
            return self._kill("postgresql")
        self.running["postgresql"].send_signal(signal.SIGINT)
        self.running["postgresql"].wait(60)
        return True

    @contextlib.contextmanager
    def _database_is_back(self) -> Iterator[None]:
        until(lambda: self.tend() or self.server is None or self.server.ready(), 60, "the database answers")
        yield

    def _go_on(self, seconds: float) -> None:
        """Everyday life."""
        end_at = time.monotonic() + seconds
        while time.monotonic() < end_at:
            self.tend()
            self.feed()
            time.sleep(0.1)

    def _cancel(self) -> bool:
        if not self.accepted:
            return False
        job_id = self.random.choice(list(self.accepted.values())[-4:])
        try:
            return self.http.post(f"/api/v1/jobs/{job_id}/cancel").status_code == 202
        except httpx.HTTPError:
            return False

    def go(self, faults: int, pause: float = 3.0) -> None:
        """Do `faults` faults, then let everything come to its end."""
        self.tend()
        until(lambda: self._ready() or self.tend(), 300, "the site is ready")
        while sum(self.counts.values()) < faults:
            self._go_on(self.random.uniform(0.1, pause))
            kind = self.fault()
            if kind:
                print(f"{sum(self.counts.values())}/{faults} {kind}", file=sys.stderr, flush=True)
        until(lambda: self.tend() or self._all_ended(), 600, "every accepted job ends")

    def _ready(self) -> bool:
        try:
            return self.http.get("/healthz").status_code == 200
        except httpx.HTTPError:
            return False

    def _all_ended(self) -> bool:
        try:
            with self.site.database.read() as session:
                return not session.scalar(select(func.count()).select_from(Job).where(Job.state.in_(jobs.ACTIVE)))
        except SQLAlchemyError:
            return False

    def close(self) -> None:
        """End all processes but the database, which is still to be looked at."""
        for name, process in self.running.items():
            if name != "postgresql":
                end(process)
        self.http.close()

    def check(self) -> dict[str, object]:
        """Assert the invariants; return the counts."""
        until(lambda: not trainings(self.site), 10, "no training is left")
        outcomes: collections.Counter[str] = collections.Counter()
        with self.site.database.read() as session:
            rows = session.scalars(select(Job)).all()
            unheard = {row.id for row in rows if row.idempotency_key == self.pending}  # taken after the client hung up
            assert {row.id for row in rows} - unheard == set(self.accepted.values())
            for row in rows:
                events = [e.data["event"] for e in session.scalars(
                    select(JobEvent).where(JobEvent.job_id == row.id).order_by(JobEvent.seq))]  # fmt: skip
                ends = [event for event in events if event in jobs.TERMINAL]
                assert ends == [row.state], (row.id, ends, row.state)
                assert events[-1] == row.state
                for table in (Checkpoint, Evaluation):
                    published = session.scalar(select(func.count()).select_from(table).where(table.job_id == row.id))
                    assert published == (1 if row.state == "succeeded" else 0), (row.id, row.state, published)
                outcomes[row.state] += 1
                self._note_takeovers(session, row.id)
            length, _ = audit.verify(session)
            for checkpoint in session.scalars(select(Checkpoint)):
                for _ in self.site.store.read(checkpoint.digest):
                    pass
        took = sorted(self.takeovers)
        return {
            "faults": dict(self.counts), "accepted": len(self.accepted), "outcomes": dict(outcomes), "audit rows": length,
            "seconds from requeue to running": {"median": took[len(took) // 2], "max": took[-1]} if took else {},
        }  # fmt: skip

    def _note_takeovers(self, session: object, job_id: str) -> None:
        waiting = None
        for event in session.scalars(select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq)):
            if event.data["event"] == "requeued" and event.data["code"] in leases.UNPUNISHED:  # a crash rests before
                waiting = event.at
            elif event.data["event"] == "claimed" and waiting is not None:
                self.takeovers.append(round(event.at - waiting, 2))
                waiting = None


def play(
    folder: Path, data: Path, faults: int, seed: int, pause: float = 3.0, postgresql: bool = False
) -> dict[str, object]:
    """A site in `folder` under faults; return what was counted. Raises PermissionError where no PostgreSQL can be run."""
    with contextlib.ExitStack() as stack:
        server, running = None, None
        if postgresql:
            server = postgres.PrivateServer(free_port())
            stack.callback(server.remove)
            running = server.start()
            until(server.ready, 60, "the database answers")
        settings = load_settings(
            embedded=True, home=folder / "site", data_root=data, device="cpu", beat=0.5, lease=2.5, ring_after=1.0,
            stop_grace=10.0, max_tries=20, min_free_mib=0, database_url=server.url if server else None,
        )  # fmt: skip
        volumes = []
        with contextlib.suppress(PermissionError):  # elsewhere no disk fills up
            for path in (settings.artifact_folder, settings.work_folder):
                volumes.append(stack.enter_context(small_volume(path, 256)))
        site = stack.enter_context(open_site(settings))
        run = site.add_run(Toy(data, folder).write(sites=1, train=TRAIN), sites=1)
        chaos = Chaos(site, folder, run.id, seed, volumes, server, running)
        stack.callback(lambda: server and end(chaos.running["postgresql"]))
        try:
            chaos.go(faults, pause)
        finally:
            chaos.close()
        return chaos.check()


def main() -> None:
    """Play once and print the counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=3.0, help="most seconds between two faults")
    parser.add_argument("--postgresql", action="store_true", help="on a server of its own, instead of SQLite")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_phantoms(folder / "data", 1, train=8, test=4, size=32)
        print(
            json.dumps(
                play(folder, folder / "data", args.faults, args.seed, args.pause, postgresql=args.postgresql), indent=1
            )
        )


if __name__ == "__main__":
    main()
