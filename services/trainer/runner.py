"""Run one claimed job: start its process, tell the database what it says, keep the lease, stop it, publish what it made."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from relay_core.errors import RelayError, Stopped
from services.site import leases
from services.site.artifacts import ArtifactStore
from services.site.db.engine import Database
from services.site.db.models import Job
from services.site.errors import CATALOGUE
from services.site.leases import Claim, LeaseLost
from services.site.settings import Settings
from services.trainer import work
from services.trainer.child import Child
from services.trainer.folder import attempt_folder
from services.trainer.says import Says

FLUSH = 1.0
"""Seconds between two writes of what a process says."""
CHECK = 1.0
"""Seconds between two looks at whether the job was cancelled."""
log = logging.getLogger(__name__)


class Heart(threading.Thread):
    """Renews a claim's lease, and notices that it was lost or cancelled.

    Where the database cannot be reached for as long as the lease lasts, the claim counts as lost: another worker may
    have it.
    """

    def __init__(self, database: Database, settings: Settings, claim: Claim) -> None:
        super().__init__(name=f"heart-{claim.job_id}", daemon=True)
        self.database, self.settings, self.claim = database, settings, claim
        self.lost, self.cancelled, self.done = threading.Event(), threading.Event(), threading.Event()

    def run(self) -> None:
        """Beat until `done`."""
        beaten = time.monotonic()
        while not self.done.wait(CHECK):
            try:
                if time.monotonic() - beaten >= self.settings.beat:
                    with self.database.write() as session:
                        job = leases.held(session, self.claim, self.settings.lease)
                    beaten, state = time.monotonic(), job.state
                else:
                    with self.database.read() as session:
                        row = session.execute(select(Job.state, Job.attempt).where(Job.id == self.claim.job_id)).one()
                    state = row.state if row.attempt == self.claim.attempt else "lost"
            except LeaseLost:
                state = "lost"
            except (SQLAlchemyError, RelayError) as error:
                log.warning("%s: the lease cannot be renewed now: %s", self.claim.job_id, error)
                state = "lost" if time.monotonic() - beaten > self.settings.lease else "running"
            if state == "cancelling":
                self.cancelled.set()
            elif state != "running":
                self.lost.set()
                return


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
        heart = Heart(self.database, self.settings, claim)
        heart.start()
        try:
            self._run(claim, heart)
        except LeaseLost:
            log.warning("%s: attempt %d was taken over", claim.job_id, claim.attempt)
        except RelayError as error:
            self._fail(claim, error.code, str(error))
        except Exception as error:
            log.exception("%s: attempt %d crashed", claim.job_id, claim.attempt)
            self._again(claim, "process_crashed", f"{type(error).__name__} in the worker")
        finally:
            heart.done.set()
            heart.join()

    def _run(self, claim: Claim, heart: Heart) -> None:
        folder = attempt_folder(self.settings.work_folder, claim.job_id, claim.attempt)
        made = work.prepare(self.database, self.store, self.settings, claim, folder)
        child = Child(made.command, folder, work.environment(claim.devices))
        says = Says(self.database, claim, folder, self.settings.data_folder)
        try:
            why = self._watch(child, says, heart)
        finally:
            child.kill()  # whatever happened: no process of it stays
        says.flush()
        self._end(claim, made, child, says, why)

    def _watch(self, child: Child, says: Says, heart: Heart) -> str:
        """Follow the process to its end; return what ended it: nothing, `cancelled`, `leaving` or `hung`."""
        why, deadline, flushed = "", float("inf"), time.monotonic()
        while not child.ended:
            for source, line in child.take(0.2):
                says.line(source, line)
            now = time.monotonic()
            if heart.lost.is_set():
                raise LeaseLost(heart.claim)
            if now - flushed >= FLUSH:
                says.flush()
                flushed = now
            if not why:
                why = self._reason(child, heart)
                if why:
                    deadline = now + (0.0 if why == "hung" else self.settings.stop_grace)
                    child.ask_to_stop()
            elif now > deadline:
                child.kill()
        return why

    def _reason(self, child: Child, heart: Heart) -> str:
        if heart.cancelled.is_set():
            return "cancelled"
        if self.leaving():
            return "leaving"
        if time.monotonic() - child.last_line > self.settings.hang_minutes * 60:
            return "hung"
        return ""

    def _end(self, claim: Claim, made: work.Work, child: Child, says: Says, why: str) -> None:
        """Write how it ended."""
        code = child.code
        if code == 0 or (made.job.kind == "preflight" and "ok" in says.last):
            stored = work.store_results(self.store, made)
            with self.database.write() as session:
                leases.held(session, claim)
                leases.finish(session, claim, "succeeded", result=work.publish(session, made, stored, says.last))
            shutil.rmtree(made.folder.parent, ignore_errors=True)
        elif why == "cancelled":
            with self.database.write() as session:
                leases.finish(session, claim, "cancelled")
        elif why == "leaving":
            with self.database.write() as session:
                leases.give_back(session, claim, "the worker was stopped; the job resumes with the next one")
        elif why == "hung":
            self._again(claim, "hung", f"no sign of life for {self.settings.hang_minutes:g} minutes")
        elif child.out_of_memory:
            self._fail(claim, "out_of_memory", "memory ran out: take a smaller train.batch_size, or a larger machine")
        elif "error" in says.last and says.last["error"] != Stopped.code:
            self._fail(claim, str(says.last["error"]), says.clean(str(says.last.get("message", ""))))
        else:
            self._again(claim, "process_crashed", says.clean(_how_it_ended(code, child)))

    def _fail(self, claim: Claim, code: str, message: str) -> None:
        code = code if code in CATALOGUE else "relay_error"
        with _unless_lost(claim), self.database.write() as session:
            leases.finish(session, claim, "failed", error={"code": code, "message": message})

    def _again(self, claim: Claim, code: str, message: str) -> None:
        with _unless_lost(claim), self.database.write() as session:
            job = leases.held(session, claim)
            leases.requeue(session, job, {"code": code, "message": message}, self.settings.max_tries)


class _unless_lost:
    """Swallows that the claim was lost meanwhile."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, LeaseLost):
            log.warning("%s: attempt %d was taken over", self.claim.job_id, self.claim.attempt)
            return True
        return False


def _how_it_ended(code: int, child: Child) -> str:
    last = next((line for line in reversed(child.errors) if line.strip()), "")
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        hint = "; the kernel does this when memory runs out" if -code == signal.SIGKILL else ""
        return f"the process was ended by {name}{hint}"
    return f"the process left with exit code {code}" + (f": {last[:500]}" if last else "")
