"""Prepare all studies of a hospital, some at a time, so that a later call goes on where one was ended."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from relay_core.errors import DataError, Problem, RelayError, Stopped
from relay_core.files import write_atomically
from relay_core.preparation.preparation_report import PICTURES, report_text
from relay_core.preparation.records import HEADER, RECORDS, PreparationJob, Record, forget, read_record, recorded
from relay_core.preparation.slicing import Mediastinum, Slices
from relay_core.preparation.studies import TABLE, Source, list_studies, studies_beside

VERSION = 1
"""Of what is made of the same options and files; a change makes every study again."""
REPORT = "report.md"
PICTURE_FOLDER = "report"
POLL = 0.2
"""Seconds between two looks at `stop`."""


@dataclass(frozen=True)
class Prepared:
    """What lies in the folder now."""

    studies: int
    made: int
    """Studies that this call made; the others were there."""
    slices: int
    positive: int
    """Slices with something labelled."""


def prepare(
    images: Path, labels: Path | None, out: Path, task: Mediastinum | Slices, *, prefix: str = "", workers: int = 0,
    tell: Callable[[int, int], object] = lambda done, total: None, stop: Callable[[], bool] = lambda: False,
) -> Prepared:  # fmt: skip
    """Write the slices of all studies, `report.md`, and for mediastinum tumours `meta.txt`.

    A study that an earlier call made with the same options of the same files is kept as it is.

    Args:
        images: folder of a volume a study.
        labels: folder of their label volumes; None: no masks, all slices.
        out: the hospital's folder.
        task: what to cut, and its options.
        prefix: stands before every study's id.
        workers: processes; 0: one a core.
        tell: takes (studies done, of).
        stop: asked between studies.

    Raises:
        DataError: names every study that cannot be used; the others are prepared. Or no slice was kept.
        RelayError: `out` holds what was prepared otherwise, or lies in `images` or `labels`.
        Stopped: by `stop`.
        OSError: `out` cannot be written.
    """
    _require_apart(out, images, labels)
    sources, bad = list_studies(images, labels, prefix)
    if task.layout == "mediastinum":
        sources, bad = _new_here(sources, bad, out)
    options = _options(task, prefix)
    digest = hashlib.sha256(json.dumps([VERSION, options], sort_keys=True).encode()).hexdigest()
    _require_alike(out, task.layout, digest, {source.study for source in sources} | bad.keys())
    jobs = [PreparationJob(source, out, task, digest, _picture(task, source, i)) for i, source in enumerate(sources)]
    left = [job for job in jobs if not job.done()]
    _clear(out, bad, whole=not left)
    done = len(jobs) - len(left)
    tell(done, len(jobs))
    problems = list(bad.values())
    for problem in _made(left, workers or os.cpu_count() or 1, stop):
        done += 1
        problems += [] if problem is None else [problem]
        tell(done, len(jobs))
    if done < len(jobs):
        raise Stopped(f"stopped after {done} of {len(jobs)} studies; the next call goes on from there")
    records = {study: record for study, record in recorded(out).items() if record["options"] == digest and record["inputs"]}
    problems.sort(key=str)
    rows = _write(out, task, options, records, problems)
    if problems:
        raise DataError(f"{len(problems)} studies are left out; {len(records)} are prepared", problems)
    if not rows:
        raise DataError("no slice was kept; choose others by --select and --keep, or unlabelled ones by --negatives")
    return Prepared(len(records), len(left), len(rows), sum(row[HEADER.index("positive")] == "1" for row in rows))


def _picture(task: Mediastinum | Slices, source: Source, number: int) -> str | None:
    """Where a study's picture goes; in the layout midline every plain folder is a study."""
    folder = f".{PICTURE_FOLDER}" if task.layout == "midline" else PICTURE_FOLDER
    return f"{folder}/{source.study}.png" if number < PICTURES else None


def _options(task: Mediastinum | Slices, prefix: str) -> dict[str, Any]:
    """Everything that decides what is made."""
    found = asdict(task)
    del found["selection"]
    chosen = task.selection
    return {
        "layout": task.layout, **found, "select": chosen.mode, "keep": chosen.limit, "negatives": chosen.negatives,
        "prefix": prefix,
    }  # fmt: skip


def _require_apart(out: Path, images: Path, labels: Path | None) -> None:
    for folder in (images, labels) if labels else (images,):
        if out.resolve().is_relative_to(folder.resolve()):
            raise RelayError(f"{out} lies in {folder}, which is only read; name another folder to write to")


def _new_here(sources: list[Source], bad: dict[str, Problem], out: Path) -> tuple[list[Source], dict[str, Problem]]:
    """The studies whose ids no hospital beside this one has; and what is bad, the others added."""
    taken = studies_beside(out)
    bad = bad | {
        source.study: Problem(
            source.image.name,
            f"is study {source.study}, which {taken[source.study]} has too (duplicate study ids over sites); "
            "--prefix HOSPITAL_ stands before all ids",
        )
        for source in sources
        if source.study in taken
    }
    return [source for source in sources if source.study not in bad], bad


def _require_alike(out: Path, layout: str, options: str, known: Set[str]) -> None:
    """Refuse to mix what was prepared in different ways."""
    for study, record in recorded(out).items():
        if record["layout"] != layout:
            raise RelayError(f"{out} holds slices in the layout {record['layout']}; name another folder, or delete it")
        if study not in known and record["options"] != options:
            raise RelayError(
                f"{out} holds the study {study}, made with other options, and it is not among the volumes now; "
                "name another folder, or delete this one"
            )


def _clear(out: Path, bad: Iterable[str], whole: bool) -> None:
    """Take away what an ended call left half-written, and what earlier ones made of studies that cannot be used now.

    The table too, unless all studies are there (`whole`): it must not name files that are not.
    """
    for left in (out / RECORDS).glob("*.making"):
        shutil.rmtree(left)
    for left in (*(out / RECORDS).glob(".writing-*"), *out.glob(".writing-*")):
        left.unlink()
    gone = [study for study in bad if read_record(out, study)]
    if gone or not whole:
        (out / TABLE).unlink(missing_ok=True)
    for study in gone:
        forget(out, study)


def _made(jobs: list[PreparationJob], workers: int, stop: Callable[[], bool]) -> Iterator[Problem | None]:
    """What `Job.make` says of each, in the order in which they end; `stop` ends it after those in work."""
    if min(workers, len(jobs)) <= 1:
        for job in jobs:
            if stop():
                return
            yield job.make()
        return
    waiting, running = iter(jobs), set[Future[Problem | None]]()
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(workers, len(jobs)), context, _start) as pool:
            while True:
                while len(running) < workers and not stop() and (following := next(waiting, None)) is not None:
                    running.add(pool.submit(following.make))
                if not running:
                    return
                ended, running = wait(running, POLL, FIRST_COMPLETED)
                for future in ended:
                    yield future.result()
    except BrokenProcessPool:
        raise RelayError("a process that prepared a study was killed (memory?); call again with fewer --workers") from None


def _start() -> None:
    """Of a process: it leaves the signals of the terminal to its parent, and the other cores to its siblings."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _write(
    out: Path, task: Mediastinum | Slices, options: dict[str, Any], records: dict[str, Record], problems: list[Problem]
) -> list[list[str]]:
    """Write the table and the report; return the table's rows."""
    rows = [row for record in records.values() for row in record["rows"]]
    if task.layout == "mediastinum" and rows:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([HEADER, *rows])
        write_atomically(out / TABLE, text.getvalue().encode())
    shown = [(study, record["picture"]) for study, record in records.items() if record["picture"]]
    facts = {study: record["facts"] for study, record in records.items()}
    write_atomically(out / REPORT, report_text(options, task.word, facts, problems, shown[:PICTURES]).encode())
    return rows
