"""Workers that were seen, and the devices of this host (found without touching CUDA)."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from functools import cache
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from services.site.db import Job, Worker, clock, now
from services.site.jobs import HELD

FORGET = 86400.0


def worker_id() -> str:
    """This process: host, process id, time."""
    return f"{platform.node()}:{os.getpid()}:{int(time.time())}"


@cache
def gpu_count() -> int:
    """NVIDIA GPUs that this process may use, asked of the driver's tool; 0 without one."""
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
    """Names of the devices that a worker may lease: `cpu`, or `cuda:0`, ....

    Args:
        device: the setting: auto, cpu, cuda or cuda:N.
        gpus: how many of them.
    """
    if device == "cpu" or (device == "auto" and gpu_count() == 0):
        return ["cpu"]
    if ":" in device:
        return [device]
    return [f"cuda:{i}" for i in range(max(1, min(gpus, gpu_count() or 1)))]


def seen(session: Session, worker: str, facts: dict[str, Any]) -> None:
    """This worker lives; call it every beat."""
    row = session.get(Worker, worker)
    if row is None:
        session.add(Worker(id=worker, host=platform.node(), facts=facts))
        return
    row.facts, row.seen_at = facts, now(session)


def lately(session: Session, seconds: float) -> list[Worker]:
    """Workers seen within `seconds`."""
    return list(session.scalars(select(Worker).where(Worker.seen_at >= clock() - seconds).order_by(Worker.id)))


def idle(session: Session, seconds: float) -> int:
    """How many workers seen within `seconds` hold no job."""
    busy = select(Job.worker).where(Job.state.in_(HELD), Job.worker.is_not(None))
    alive = select(func.count()).select_from(Worker).where(Worker.seen_at >= clock() - seconds, Worker.id.not_in(busy))
    return session.scalar(alive) or 0


def gone(session: Session, worker: str) -> None:
    """This worker leaves."""
    session.execute(delete(Worker).where(Worker.id == worker))


def forget(session: Session) -> None:
    """Drop workers that were not seen for a day."""
    session.execute(delete(Worker).where(Worker.seen_at < clock() - FORGET))
