"""Run one claimed job: start its process, record its output, renew the lease, stop the process, publish its results."""

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
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from relay_core.errors import RelayError, Stopped
from services.site import CATALOGUE, ArtifactStore, Claim, LeaseLost, Refusal, Settings, jobs, leases, volumes
from services.site.db import Database, DatabaseError, Job
from services.trainer import results, work
from services.trainer.folder import attempt_folder
from services.trainer.process_output import ProcessOutput
from services.trainer.training_process import TrainingProcess

FLUSH = 1.0
"""Seconds between two writes of process output to the database."""
GUARD = 0.5
"""Seconds between two looks whether the lease was lost."""
CHECK = 1.0
"""Seconds between two checks of whether the job was cancelled."""
SILENT = 4
"""Factor on `hang_minutes` while no steps are due: loading and scoring may be silent for that long."""
PATIENCE = 5.0
"""Seconds to wait for the end of a heartbeat thread, which may hang in a dead connection."""
AWAY = (OperationalError, InterfaceError, DatabaseError)
"""Exceptions that a database which cannot be reached raises."""
log = logging.getLogger(__name__)
Result = TypeVar("Result")


class Heartbeat(threading.Thread):
    """Renews a claim's lease, and notices that the claim was lost or the job cancelled.

    A lease that was not renewed for as long as it lasts counts as lost: another worker may have the job. Then a thread that
    never speaks to the database kills the job's process, as this one and the runner's may hang in a dead connection.
    """

    def __init__(self, database: Database, settings: Settings, claim: Claim) -> None:
        super().__init__(name=f"heart-{claim.job_id}", daemon=True)
        self.database, self.settings, self.claim = database, settings, claim
        self.cancelled, self.done = threading.Event(), threading.Event()
        self._lost = threading.Event()
        self._renewed = time.monotonic()
        self._child: TrainingProcess | None = None
        self._guard = threading.Thread(target=self._kill_when_lost, name=f"guard-{claim.job_id}", daemon=True)

    @property
    def lost(self) -> bool:
        """Return whether the claim is lost; that is noticed even while this thread hangs in a dead connection."""
        return self._lost.is_set() or time.monotonic() - self._renewed > self.settings.lease

    def guard(self, child: TrainingProcess) -> None:
        """Kill the job's process as soon as the claim is lost, whatever the other threads do."""
        self._child = child
        self._guard.start()

    def _kill_when_lost(self) -> None:
        while self._child is not None and not self._child.ended and not self.done.wait(GUARD):
            if self.lost:
                log.warning("%s: the lease was lost; its process is killed", self.claim.job_id)
                self._child.kill()
                return

    def run(self) -> None:
        """Send heartbeats until `done`, or until the claim is lost."""
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
        database: the site's database.
        settings: the site's settings.
        leaving: function that returns whether the worker was asked to leave.
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
            if self._waits_for_volumes(heart, error):
                return
            record_error = self._requeue if error.code == "storage_full" else self._fail  # somebody may make room meanwhile
            record_error(heart, error.code, str(error))
        except OSError as error:
            if self._waits_for_volumes(heart):
                return
            log.exception("%s: attempt %d could not go on", heart.claim.job_id, heart.claim.attempt)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            self._requeue(heart, "storage_full" if full else "process_crashed", error.strerror or type(error).__name__)
        except Exception as error:
            log.exception("%s: attempt %d crashed", heart.claim.job_id, heart.claim.attempt)
            self._requeue(heart, "process_crashed", f"{type(error).__name__} in the worker")

    def _run(self, heart: Heartbeat) -> None:
        self._require_volumes(heart)
        with volumes.pinned(self.settings.work_folder) as place:
            self._run_in(attempt_folder(place, heart.claim), heart)

    def _run_in(self, folder: Path, heart: Heartbeat) -> None:
        claim = heart.claim
        prepared = self._prepare(heart, folder)
        # the claim may have been lost during the preparation
        self._write_while_held(heart, lambda session: leases.held(session, claim, self.settings.lease))
        command = [part.replace(f"{folder}/", "").replace(str(folder), ".") for part in prepared.command]
        child = TrainingProcess(command, folder, work.environment(claim.devices, prepared.keys))
        heart.guard(child)
        output = ProcessOutput(self.database, claim, folder, self.settings.data_folder, prepared.names)
        try:
            cause = self._watch(child, output, prepared, heart)
        finally:
            child.close()  # whatever happened, no process of the job stays
        self._show(prepared, output)
        self._wait_out(heart, output.flush)  # the last events and metrics too
        self._conclude(heart, prepared, child, output, cause)

    def _require_volumes(self, heart: Heartbeat, *names: str) -> None:
        """Raise Refusal `volume_away` where one of the volumes `names` (default: all) is not there."""
        problems = self._wait_out(heart, lambda: volumes.away(self.database, self.settings, *(names or volumes.ALL)))
        if problems:
            raise Refusal("volume_away", "; ".join(problems.values()))

    def _waits_for_volumes(self, heart: Heartbeat, error: RelayError | None = None) -> bool:
        """Hand the job back where a volume is away, as it failed by no fault of its own; return whether that is so."""
        if error is None or error.code != "volume_away":
            try:
                self._require_volumes(heart)
            except Refusal as refusal:
                error = refusal
            else:
                return False
        self._give_back(heart, f"{error}; the job goes on when it is back", error.code)
        return True

    def _give_back(self, heart: Heartbeat, why: str, code: str = "stopped") -> None:
        self._write_while_held(heart, lambda session: leases.give_back(session, heart.claim, why, code))

    def _prepare(self, heart: Heartbeat, folder: Path) -> work.PreparedJob:
        return self._wait_out(heart, lambda: work.prepare(self.database, self.store, self.settings, heart.claim, folder))

    def _watch(self, child: TrainingProcess, output: ProcessOutput, prepared: work.PreparedJob, heart: Heartbeat) -> str:
        """Follow the process to its end; return why it was stopped: `cancelled`, `leaving`, `hung`, `away` or ""."""
        cause, deadline, flushed = "", float("inf"), time.monotonic()
        while not child.ended:
            for source, line in child.take(0.2):
                output.line(source, line)
            now = time.monotonic()
            if heart.lost:
                raise LeaseLost(heart.claim)
            if now - flushed >= FLUSH:
                self._show(prepared, output)  # before whoever watches is told of them
                self._flush(output)
                flushed = now
            if not cause:
                cause = self._cause_to_stop(output, heart)
                if cause:
                    deadline = now + (0.0 if cause in ("hung", "away") else self.settings.stop_grace)
                    child.kill() if cause == "away" else child.ask_to_stop()
            elif now > deadline:
                child.kill()
        if heart.lost:
            raise LeaseLost(heart.claim)
        return cause

    def _flush(self, output: ProcessOutput) -> None:
        """Write the process output; where the database is away it is kept for the next time, and the training goes on."""
        try:
            output.flush()
        except AWAY as error:
            log.warning("%s: its events wait for the database: %s", output.claim.job_id, type(error).__name__)

    def _show(self, prepared: work.PreparedJob, output: ProcessOutput) -> None:
        """Publish the pictures that a training has drawn so far; one that cannot be now is tried again with the next."""
        names = output.pictures
        if not names or prepared.job.kind != "train":
            return
        try:
            stored = results.store_files(self.store, prepared.folder, [prepared.folder / name for name in names])
            with self.database.write() as session:
                leases.held(session, output.claim)
                results.attach_files(session, prepared.job.id, stored)
            output.pictures = []
        except LeaseLost:
            raise
        except (*AWAY, OSError, Refusal) as error:
            log.warning("%s: its pictures wait: %s", output.claim.job_id, type(error).__name__)

    def _cause_to_stop(self, output: ProcessOutput, heart: Heartbeat) -> str:
        if heart.cancelled.is_set():
            return "cancelled"
        if self.leaving():
            return "leaving"
        if not volumes.is_marked(self.settings.work_folder):
            return "away"  # nothing may be written beneath its mount point
        patience = self.settings.hang_minutes * 60 * (1 if output.training else SILENT)
        return "hung" if time.monotonic() - output.alive > patience else ""

    def _conclude(
        self, heart: Heartbeat, prepared: work.PreparedJob, child: TrainingProcess, output: ProcessOutput, cause: str
    ) -> None:
        """Publish the results of a process that succeeded; else end the job, or put it back into the queue."""
        code, claim = child.code, heart.claim
        message = str(output.last.get("message", ""))
        succeeded = code == 0 or (prepared.job.kind == "preflight" and "ok" in output.last)
        if cause != "cancelled":
            self._require_volumes(heart, *(volumes.WRITTEN if succeeded else volumes.ALL))
        if succeeded:
            stored = results.store_results(self.store, prepared)

            def publish(session: Session) -> None:
                leases.held(session, claim)
                leases.finish(session, claim, "succeeded", result=results.publish(session, prepared, stored, output.last))

            self._write_while_held(heart, publish)
            shutil.rmtree(prepared.folder.parent, ignore_errors=True)
        elif cause == "cancelled":
            self._write_while_held(heart, lambda session: leases.finish(session, claim, "cancelled"))
        elif cause == "leaving":
            self._give_back(heart, "the worker was stopped; the job resumes with the next one")
        elif cause == "away":
            self._give_back(heart, "the volume `work` was away; the job goes on", "volume_away")
        elif cause == "hung":
            self._requeue(heart, "hung", f"no step for {self.settings.hang_minutes:g} minutes")
        elif child.out_of_memory:
            self._fail(heart, "out_of_memory", "memory ran out: take a smaller train.batch_size, or a larger machine")
        elif os.strerror(errno.ENOSPC) in message:
            self._requeue(heart, "storage_full", "the volume of running jobs is full; make room, then retry the job")
        elif output.last.get("error") == "decoder_unavailable":
            self._requeue(heart, "decoder_unavailable", str(output.last.get("message", "")))
        elif "error" in output.last and output.last["error"] != Stopped.code:
            self._fail(heart, str(output.last["error"]), _public_message(output.clean(message)))
        else:
            self._requeue(heart, "process_crashed", output.clean(_exit_message(code, child)))

    def _write_while_held(self, heart: Heartbeat, write: Callable[[Session], object]) -> None:
        """Call `write` in a transaction; where the database is away try again, for as long as the claim holds.

        Raises:
            LeaseLost: the claim no longer holds the job.
        """

        def attempt() -> None:
            with self.database.write() as session:
                write(session)

        self._wait_out(heart, attempt)

    def _wait_out(self, heart: Heartbeat, attempt: Callable[[], Result]) -> Result:
        """Return what `attempt` returns; where the database is away try again, for as long as the claim holds."""
        while True:
            try:
                return attempt()
            except AWAY:
                log.warning("%s: waiting for the database", heart.claim.job_id)
                if heart.done.wait(CHECK) or heart.lost:
                    raise LeaseLost(heart.claim) from None

    def _fail(self, heart: Heartbeat, code: str, message: str) -> None:
        error = {"code": code if code in CATALOGUE else "relay_error", "message": message}
        self._write_while_held(heart, lambda session: leases.finish(session, heart.claim, "failed", error=error))

    def _requeue(self, heart: Heartbeat, code: str, message: str) -> None:
        error = {"code": code, "message": message}

        def write(session: Session) -> None:
            leases.requeue(session, leases.held(session, heart.claim), error, self.settings.max_tries)

        self._write_while_held(heart, write)


def _public_message(message: str) -> str:
    """Return the first line of a core error: later lines list files, and a file's name may be a patient's."""
    first, *rest = message.splitlines() or [""]
    return f"{first} (a preflight job of the data set names the files)" if rest else first


def _exit_message(code: int, child: TrainingProcess) -> str:
    last_line = next((line for line in reversed(child.errors) if line.strip()), "")
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        hint = "; the kernel does this when memory runs out" if -code == signal.SIGKILL else ""
        return f"the process was ended by {name}{hint}"
    return f"the process left with exit code {code}" + (f": {last_line[:500]}" if last_line else "")
