"""Processes that write to a site's database at once; they import no torch, so that they start quickly."""

import multiprocessing
import time

from sqlalchemy import URL, make_url

from services.site import audit
from services.site.db import Database


def _write_for(url: str, seconds: float, name: str, results: "multiprocessing.Queue[tuple[int, list[str]]]") -> None:
    database, count, errors = Database(make_url(url)), 0, []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with database.write() as session:  # reads, then writes: what fails at once without BEGIN IMMEDIATE
                audit.record(session, name, "test", str(count))
            count += 1
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    results.put((count, errors))


def write_from_processes(url: URL, seconds: float, processes: int = 6) -> tuple[int, list[str]]:
    """Let processes write at once; return the commits and what reached a caller."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[int, list[str]]] = context.Queue()
    text = url.render_as_string(hide_password=False)
    running = [context.Process(target=_write_for, args=(text, seconds, f"p{i}", results)) for i in range(processes)]
    for process in running:
        process.start()
    got = [results.get(timeout=seconds + 120) for _ in running]
    for process in running:
        process.join()
    return sum(count for count, _ in got), [error for _, errors in got for error in errors]
