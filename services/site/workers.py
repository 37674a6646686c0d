"""Record the heartbeats of workers, and find the devices of this host without touching CUDA."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from functools import cache
from typing import Any

from sqlalchemy import delete, func, not_, select
from sqlalchemy.orm import Session

from services.site.db import Job, Worker, now
from services.site.db import lately as lately_of
from services.site.jobs import HELD

FORGET = 86400.0


def worker_id() -> str:
    """Return an id for this process, `host:process id:time in seconds`; each call reads the time."""
    return f"{platform.node()}:{os.getpid()}:{int(time.time())}"


@cache
def gpu_count() -> int:
    """Count the NVIDIA GPUs that this process may use: from CUDA_VISIBLE_DEVICES, else from nvidia-smi, else 0."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listing.splitlines())


def devices(device: str, gpus: int) -> list[str]:
    """Return the names of the devices that a worker may lease: `cpu`, or `cuda:0`, ....

    Args:
        device: the setting `device`: auto, cpu, cuda or cuda:N.
        gpus: the largest number of GPUs.
    """
    if device == "cpu" or (device == "auto" and gpu_count() == 0):
        return ["cpu"]
    if ":" in device:
        return [device]
    return [f"cuda:{i}" for i in range(max(1, min(gpus, gpu_count() or 1)))]


def seen(session: Session, worker: str, facts: dict[str, Any]) -> None:
    """Record a worker's heartbeat, with the facts that it states about itself."""
    row = session.get(Worker, worker)
    if row is None:
        session.add(Worker(id=worker, host=platform.node(), facts=facts))
        return
    row.facts, row.seen_at = facts, now(session)


def lately(session: Session, seconds: float) -> list[Worker]:
    """Return the workers seen within the last `seconds`."""
    return list(session.scalars(select(Worker).where(lately_of(Worker.seen_at, seconds)).order_by(Worker.id)))


def idle(session: Session, seconds: float) -> int:
    """Count the workers seen within the last `seconds` that hold no job."""
    busy_workers = select(Job.worker).where(Job.state.in_(HELD), Job.worker.is_not(None))
    count = select(func.count()).select_from(Worker)
    count = count.where(lately_of(Worker.seen_at, seconds), Worker.id.not_in(busy_workers))
    return session.scalar(count) or 0


def gone(session: Session, worker: str) -> None:
    """Remove the row of a worker that leaves."""
    session.execute(delete(Worker).where(Worker.id == worker))


def forget(session: Session) -> None:
    """Remove the rows of workers not seen for a day, or seen when the clock was ahead: one that lives writes again."""
    session.execute(delete(Worker).where(not_(lately_of(Worker.seen_at, FORGET))))
