"""A site's real processes, and what is done to them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from services.site import jobs
from tests.services.conftest import SiteKit


@contextlib.contextmanager
def process(site: SiteKit, module: str, *arguments: str, log: Path, **variables: str) -> Iterator[subprocess.Popen]:
    """A process of the site in a group of its own; killed at the end, whatever it does."""
    started = start(site, module, *arguments, log=log, **variables)
    try:
        yield started
    finally:
        end(started)


def start(site: SiteKit, module: str, *arguments: str, log: Path, **variables: str) -> subprocess.Popen:
    """Start `python -m module`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments], env={**site.environment(), **variables}, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip


def end(started: subprocess.Popen) -> None:
    """SIGKILL to the group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()


def until(condition: Callable[[], object], seconds: float, what: str) -> float:
    """Wait for a condition; return the seconds that it took."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > seconds:
            raise AssertionError(f"after {seconds:g} s still not: {what}")
        time.sleep(0.05)
    return time.monotonic() - begin


def step_of(site: SiteKit, job_id: str) -> int:
    """The last step that the database knows of."""
    return int((site.job(job_id).progress or {}).get("step", 0))


def ended(site: SiteKit, job_id: str) -> bool:
    """Whether the job is in a terminal state."""
    return site.job(job_id).state in jobs.TERMINAL


def trainings(site: SiteKit) -> list[int]:
    """Processes of the core that work in this site's folder."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                place = str((folder / "cwd").readlink())
                if b"relay_core" in words and place.startswith(f"{site.settings.work_folder}/"):
                    found.append(int(folder.name))
    return found
