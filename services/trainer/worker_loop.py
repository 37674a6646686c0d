"""Run a worker: it sends heartbeats, claims jobs and runs them, in the same way under Celery and without a broker."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import delete, or_, select
from sqlalchemy.exc import SQLAlchemyError

import relay_core
from relay_core.cuda import native
from relay_core.errors import RelayError
from relay_core.files import write_atomically
from services.site import ArtifactStore, Settings, audit_heads, jobs, leases, sweep, trust, volumes, workers
from services.site.db import Attachment, Database, Job, clock, now
from services.trainer import key_changes
from services.trainer.runner import Runner

TIDY_EVERY = 3600.0
KEEP_ANSWERS = 86400.0
"""Seconds that the answer of a job of a study can be downloaded."""
ENDED = "ended.json"
"""Name of the file in a job's folder that adds up the time since the job ended."""
KEEP_DAYS = 14
"""Days that a failed or cancelled job can be retried from its checkpoints."""
log = logging.getLogger(__name__)


def tidy(database: Database, settings: Settings) -> int:
    """Remove the folders of jobs that succeeded, are gone, or ended `KEEP_DAYS` ago; return how many.

    Where the database was restored, and nobody has confirmed it yet, none is removed: a job may be gone with its newer rows.
    """
    work, removed = settings.work_folder, 0
    with database.read() as session:
        if sweep.unconfirmed(session, ArtifactStore(settings.artifact_folder)) is not None:
            return 0
        moment = now(session)
        for folder in work.glob("job-*"):
            job = session.get(Job, folder.name)
            study_ended = job is not None and job.kind == "predict_study" and job.state in jobs.TERMINAL
            ended_long_ago = job is not None and _seconds_ended(folder, job, moment) > KEEP_DAYS * 86400
            if job is None or study_ended or ended_long_ago or job.state == "succeeded":
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
    return removed


def _seconds_ended(folder: Path, job: Job, moment: float) -> float:
    """Return for how long a job has been seen to have ended, added up by the calls: a clock that jumps makes nothing old."""
    note = folder / ENDED
    if job.state not in jobs.TERMINAL:
        note.unlink(missing_ok=True)
        return 0.0
    try:
        known = json.loads(note.read_text())
        age = float(known["age"]) + min(max(moment - float(known["seen_at"]), 0.0), 2 * TIDY_EVERY)
    except (OSError, ValueError, KeyError, TypeError):
        age = 0.0
    write_atomically(note, json.dumps({"age": age, "seen_at": moment}).encode())
    return age


def forget_study(database: Database, work: Path, job_id: str) -> None:
    """Remove what a job of a study that has ended left in its folder: the study, which is a patient's image."""
    with contextlib.suppress(SQLAlchemyError, RelayError), database.read() as session:
        job = session.get(Job, job_id)
        if job is not None and job.kind == "predict_study" and job.state in jobs.TERMINAL:
            shutil.rmtree(work / job_id, ignore_errors=True)


def forget_answers(database: Database) -> None:
    """Let go of the answers of studies that ended `KEEP_ANSWERS` ago."""
    with database.write() as session:
        off = or_(Job.finished_at < clock() - KEEP_ANSWERS, Job.finished_at > clock() + KEEP_ANSWERS)  # a clock set back
        old = select(Job.id).where(Job.kind == "predict_study", off)
        session.execute(delete(Attachment).where(Attachment.owner.in_(old)))


class WorkerLoop:
    """Claims jobs and runs them one at a time, while a thread sends the worker's heartbeats.

    Args:
        settings: the site's settings.
        leaving: function that returns whether the worker was asked to leave; called between jobs, and while one runs.

    Raises:
        DeviceError: RELAY_OPS demands ops that the device does not have.
    """

    def __init__(self, settings: Settings, leaving: Callable[[], bool]) -> None:
        self.settings, self.leaving = settings, leaving
        self.database = Database(settings.database)
        self.worker = workers.worker_id()
        self.devices = workers.devices(settings.device, settings.gpus)
        native.require(self.devices[0])
        self.ops = native.in_use(self.devices[0])
        self._closed = threading.Event()
        self._tidied = -TIDY_EVERY
        self._problems: list[str] = []
        self._thread = threading.Thread(target=self._send_heartbeats, name="station", daemon=True)
        self._thread.start()
        self._witness = threading.Thread(target=self._sign_heads, name="heads", daemon=True)
        self._witness.start()

    def work_once(self) -> bool:
        """Claim a job and run it to its end; return whether there was one."""
        if self.leaving() or self._waits():
            return False
        if key_changes.carry_out(self.database, self.settings, self.worker):
            return True
        if time.monotonic() - self._tidied > TIDY_EVERY:
            self._tidied = time.monotonic()
            tidy(self.database, self.settings)
            forget_answers(self.database)
        with self.database.write() as session:
            claim = leases.claim(
                session, worker=self.worker, host=platform.node(), devices=self.devices, lease=self.settings.lease
            )
        if claim is None:
            return False
        log.info("%s: attempt %d on %s", claim.job_id, claim.attempt, ", ".join(claim.devices) or "no device")
        Runner(self.database, self.settings, self.leaving)(claim)
        forget_study(self.database, self.settings.work_folder, claim.job_id)
        return True

    def _waits(self) -> bool:
        """Return whether a volume is away, so that no job may be claimed; the log is told once."""
        problems = list(volumes.away(self.database, self.settings, *volumes.ALL).values())
        if problems != self._problems:
            log.warning("%s", "; ".join(problems) or "all volumes are there again")
        self._problems = problems
        return bool(problems)

    def close(self) -> None:
        """End the heartbeats, remove the worker's row and close the database."""
        self._closed.set()
        self._thread.join(5)
        self._witness.join(5)
        try:
            with self.database.write() as session:
                workers.gone(session, self.worker)
        except (SQLAlchemyError, RelayError) as error:
            log.warning("left without saying so: %s", error)
        self.database.close()

    def _send_heartbeats(self) -> None:
        while True:
            try:
                facts = self._facts()
                with self.database.write() as session:
                    workers.seen(session, self.worker, facts)
            except (SQLAlchemyError, RelayError) as error:
                log.warning("the database cannot be told that this worker lives: %s", error)
            try:
                while key_changes.carry_out(self.database, self.settings, self.worker):
                    pass
                trust.confirm(self.database, self.settings.keys_folder, f"worker {self.worker}")
            except (SQLAlchemyError, RelayError, OSError) as error:
                log.warning("the database cannot be told whom this site trusts: %s", error)
            if self._closed.wait(self.settings.beat):
                return

    def _sign_heads(self) -> None:
        while True:
            try:
                audit_heads.seal(self.database, self.settings)
            except (SQLAlchemyError, RelayError, OSError) as error:
                level = logging.CRITICAL if getattr(error, "code", "") == "audit_broken" else logging.WARNING
                log.log(level, "the head of the audit log is not signed: %s", error)
            if self._closed.wait(self.settings.heads_seconds):
                return

    def _facts(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "device": ", ".join(self.devices),
            "gpus": sum(device.startswith("cuda") for device in self.devices),
            "version": relay_core.__version__,
            "torch": importlib.metadata.version("torch"),
            "ops": self.ops,
            "volumes": volumes.away(self.database, self.settings, *volumes.ALL),
            "card": _card(self.settings),
            "gpu_memory": _gpu_memory() if self.devices[0].startswith("cuda") else {},
        }


def _card(settings: Settings) -> str | None:
    """Return the card that the other sites need, for the API, which has no folder of keys; None: there is none yet."""
    try:
        return (settings.keys_folder / "card.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _gpu_memory() -> dict[str, int]:
    """Return the bytes in use on each GPU, by its index, as nvidia-smi reports them; nothing without that tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    query = [tool, "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
        return {index.strip(): int(used) << 20 for index, used in (line.split(",") for line in lines if "," in line)}
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}
