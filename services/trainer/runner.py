"""Run one claimed job: start its process, tell the database what it says, keep the lease, stop it, publish what it made."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from relay_core.errors import RelayError, Stopped
from services.site import CATALOGUE, ArtifactStore, Claim, LeaseLost, Settings, jobs, leases
from services.site.db import Database, DatabaseError, Job
from services.trainer import results, work
from services.trainer.folder import attempt_folder
from services.trainer.process_output import ProcessOutput
from services.trainer.training_process import TrainingProcess

FLUSH = 1.0
"""Seconds between two writes of what a process says."""
CHECK = 1.0
"""Seconds between two looks at whether the job was cancelled."""
SILENT = 4
"""Times `hang_minutes` that loading and scoring may say nothing."""
PATIENCE = 5.0
"""Seconds that a heart which hangs in a dead connection is waited for."""
AWAY = (OperationalError, InterfaceError, DatabaseError)
"""What a database that cannot be reached raises."""
log = logging.getLogger(__name__)


class Heartbeat(threading.Thread):
    """Renews a claim's lease, and notices that it was lost or cancelled.

    Where it was not renewed for as long as it lasts, it counts as lost: another worker may have the job.
    """

    def __init__(self, database: Database, settings: Settings, claim: Claim) -> None:
        super().__init__(name=f"heart-{claim.job_id}", daemon=True)
        self.database, self.settings, self.claim = database, settings, claim
        self.cancelled, self.done = threading.Event(), threading.Event()
        self._lost = threading.Event()
        self._renewed = time.monotonic()

    @property
    def lost(self) -> bool:
        """Whether the claim is lost; true even where this thread hangs in a dead connection."""
        return self._lost.is_set() or time.monotonic() - self._renewed > self.settings.lease

    def run(self) -> None:
        """Beat until `done`, or until the claim is lost."""
        while not self._lost.is_set() and not self.done.wait(CHECK):
            try:
                self._beat()
            except LeaseLost:
                self._lost.set()
            except (SQLAlchemyError, RelayError) as error:
                log.warning("%s: the lease cannot be renewed now: %s", self.claim.job_id, type(error).__name__)

    def _beat(self) -> None:
        if time.monotonic() - self._renewed >= self.settings.beat:
            begin = time.monotonic()
            with self.database.write() as session:
                state = leases.held(session, self.claim, self.settings.lease).state
            self._renewed = begin
        else:
            with self.database.read() as session:
                row = session.execute(select(Job.state, Job.attempt).where(Job.id == self.claim.job_id)).one()
            if row.attempt != self.claim.attempt or row.state not in jobs.HELD:
                raise LeaseLost(self.claim)
            state = row.state
        if state == "cancelling":
            self.cancelled.set()


class Runner:
    """Runs claimed jobs of a worker, one at a time.

    Args:
        database: of the site.
        settings: of the site.
        leaving: whether the worker was asked to leave.
    """

    def __init__(self, database: Database, settings: Settings, leaving: Callable[[], bool] = lambda: False) -> None:
        self.database, self.settings, self.leaving = database, settings, leaving
        self.store = ArtifactStore(settings.artifact_folder)

    def __call__(self, claim: Claim) -> None:
        """Carry a job to its end, or back to the queue. A claim that is lost on the way is dropped without a trace."""
        heart = Heartbeat(self.database, self.settings, claim)
        heart.start()
        try:
            self._carry_out(heart)
        except LeaseLost:
            log.warning("%s: attempt %d was taken over", claim.job_id, claim.attempt)
        finally:
            heart.done.set()
            heart.join(PATIENCE)

    def _carry_out(self, heart: Heartbeat) -> None:
        try:
            self._run(heart)
        except LeaseLost:
            raise
        except RelayError as error:
            end = self._again if error.code == "storage_full" else self._fail  # somebody may make room meanwhile
            end(heart, error.code, str(error))
        except OSError as error:
            log.exception("%s: attempt %d could not go on", heart.claim.job_id, heart.claim.attempt)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            self._again(heart, "storage_full" if full else "process_crashed", error.strerror or type(error).__name__)
        except Exception as error:
            log.exception("%s: attempt %d crashed", heart.claim.job_id, heart.claim.attempt)
            self._again(heart, "process_crashed", f"{type(error).__name__} in the worker")

    def _run(self, heart: Heartbeat) -> None:
        claim = heart.claim
        folder = attempt_folder(self.settings.work_folder, claim)
        made = self._prepare(heart, folder)
        self._surely(heart, lambda session: leases.held(session, claim, self.settings.lease))  # still ours after all that
        child = TrainingProcess(made.command, folder, work.environment(claim.devices, made.keys))
        says = ProcessOutput(self.database, claim, folder, self.settings.data_folder, made.names)
        try:
            why = self._watch(child, says, heart)
        finally:
            child.close()  # whatever happened: no process of it stays
        self._flush(says)
        self._end(heart, made, child, says, why)

    def _prepare(self, heart: Heartbeat, folder: Path) -> work.PreparedJob:
        while True:
            try:
                return work.prepare(self.database, self.store, self.settings, heart.claim, folder)
            except AWAY:
                self._wait(heart)

    def _watch(self, child: TrainingProcess, says: ProcessOutput, heart: Heartbeat) -> str:
        """Follow the process to its end; return what ended it: nothing, `cancelled`, `leaving` or `hung`."""
        why, deadline, flushed = "", float("inf"), time.monotonic()
        while not child.ended:
            for source, line in child.take(0.2):
                says.line(source, line)
            now = time.monotonic()
            if heart.lost:
                raise LeaseLost(heart.claim)
            if now - flushed >= FLUSH:
                self._flush(says)
                flushed = now
            if not why:
                why = self._reason(says, heart)
                if why:
                    deadline = now + (0.0 if why == "hung" else self.settings.stop_grace)
                    child.ask_to_stop()
            elif now > deadline:
                child.kill()
        return why

    def _flush(self, says: ProcessOutput) -> None:
        """Write what it said; where the database is away, it waits for the next time, and the training goes on."""
        try:
            says.flush()
        except AWAY as error:
            log.warning("%s: its events wait for the database: %s", says.claim.job_id, type(error).__name__)

    def _reason(self, says: ProcessOutput, heart: Heartbeat) -> str:
        if heart.cancelled.is_set():
            return "cancelled"
        if self.leaving():
            return "leaving"
        patience = self.settings.hang_minutes * 60 * (1 if says.training else SILENT)
        return "hung" if time.monotonic() - says.alive > patience else ""

    def _end(self, heart: Heartbeat, made: work.PreparedJob, child: TrainingProcess, says: ProcessOutput, why: str) -> None:
        """Write how it ended."""
        code, claim = child.code, heart.claim
        said = str(says.last.get("message", ""))
        if code == 0 or (made.job.kind == "preflight" and "ok" in says.last):
            stored = results.store_results(self.store, made)

            def publish(session: Session) -> None:
                leases.held(session, claim)
                leases.finish(session, claim, "succeeded", result=results.publish(session, made, stored, says.last))

            self._surely(heart, publish)
            shutil.rmtree(made.folder.parent, ignore_errors=True)
        elif why == "cancelled":
            self._surely(heart, lambda session: leases.finish(session, claim, "cancelled"))
        elif why == "leaving":
            reason = "the worker was stopped; the job resumes with the next one"
            self._surely(heart, lambda session: leases.give_back(session, claim, reason))
        elif why == "hung":
            self._again(heart, "hung", f"no step for {self.settings.hang_minutes:g} minutes")
        elif child.out_of_memory:
            self._fail(heart, "out_of_memory", "memory ran out: take a smaller train.batch_size, or a larger machine")
        elif os.strerror(errno.ENOSPC) in said:
            self._again(heart, "storage_full", "the volume of running jobs is full; make room, then retry the job")
        elif "error" in says.last and says.last["error"] != Stopped.code:
            self._fail(heart, str(says.last["error"]), _public(says.clean(said)))
        else:
            self._again(heart, "process_crashed", says.clean(_how_it_ended(code, child)))

    def _surely(self, heart: Heartbeat, write: Callable[[Session], object]) -> None:
        """Write, and where the database is away try again, for as long as the claim holds.

        Raises:
            LeaseLost: it holds no more.
        """
        while True:
            try:
                with self.database.write() as session:
                    write(session)
                return
            except AWAY:
                self._wait(heart)

    def _wait(self, heart: Heartbeat) -> None:
        log.warning("%s: waiting for the database", heart.claim.job_id)
        if heart.done.wait(CHECK) or heart.lost:
            raise LeaseLost(heart.claim)

    def _fail(self, heart: Heartbeat, code: str, message: str) -> None:
        error = {"code": code if code in CATALOGUE else "relay_error", "message": message}
        self._surely(heart, lambda session: leases.finish(session, heart.claim, "failed", error=error))

    def _again(self, heart: Heartbeat, code: str, message: str) -> None:
        error = {"code": code, "message": message}

        def write(session: Session) -> None:
            leases.requeue(session, leases.held(session, heart.claim), error, self.settings.max_tries)

        self._surely(heart, write)


def _public(message: str) -> str:
    """The first sentence of a core error: what follows lists files, and a file's name may be a patient's."""
    first, *rest = message.splitlines() or [""]
    return f"{first} (a preflight job of the data set names the files)" if rest else first


def _how_it_ended(code: int, child: TrainingProcess) -> str:
    last = next((line for line in reversed(child.errors) if line.strip()), "")
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        hint = "; the kernel does this when memory runs out" if -code == signal.SIGKILL else ""
        return f"the process was ended by {name}{hint}"
    return f"the process left with exit code {code}" + (f": {last[:500]}" if last else "")
