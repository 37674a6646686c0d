"""Prepare all studies of a hospital in parallel; a call that is stopped is continued by the next one."""

from __future__ import annotations

import hashlib
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
from relay_core.texts import csv_table

VERSION = 1
"""Version of the files that the same options and inputs give; changing it prepares every study again."""
REPORT = "report.md"
PICTURE_FOLDER = "report"
POLL = 0.2
"""Seconds between two checks of `stop`."""


@dataclass(frozen=True)
class Prepared:
    """The contents of the hospital's folder after a preparation, in numbers."""

    studies: int
    made: int
    """Studies that this call prepared; the others were there before."""
    slices: int
    positive: int
    """Slices with at least one labelled pixel."""


def prepare(
    images: Path, labels: Path | None, out: Path, task: Mediastinum | Slices, *, prefix: str = "", workers: int = 0,
    tell: Callable[[int, int], object] = lambda done, total: None, stop: Callable[[], bool] = lambda: False,
) -> Prepared:  # fmt: skip
    """Write the slices of all studies, `report.md`, and for mediastinum tumours `meta.txt`.

    A study that an earlier call made with the same options from the same files is kept as it is.

    Args:
        images: folder with one volume for each study.
        labels: folder of their label volumes; None: no masks are written, and all slices are kept.
        out: the hospital's folder, which is written.
        task: the kind of slices to cut, with its options.
        prefix: text that is put before every study's id.
        workers: number of processes; 0: one for each core.
        tell: called with the number of studies done and the number of all studies.
        stop: called between studies; the preparation ends early when it returns True.

    Raises:
        DataError: if studies cannot be used, naming all of them while the others are prepared; or if no slice was kept.
        RelayError: if `out` holds slices that were prepared with other options, or lies in `images` or `labels`.
        Stopped: if `stop` ended the preparation early.
        OSError: if `out` cannot be written.
    """
    _require_apart(out, images, labels)
    sources, problem_of = list_studies(images, labels, prefix)
    if task.layout == "mediastinum":
        sources, problem_of = _leave_out_taken(sources, problem_of, out)
    options = _options_of(task, prefix)
    digest = hashlib.sha256(json.dumps([VERSION, options], sort_keys=True).encode()).hexdigest()
    _require_same_options(out, task.layout, digest, {source.study for source in sources} | problem_of.keys())
    jobs = [PreparationJob(source, out, task, digest, _picture_path(task, source, i)) for i, source in enumerate(sources)]
    remaining = [job for job in jobs if not job.done()]
    _clear(out, problem_of, whole=not remaining)
    done = len(jobs) - len(remaining)
    tell(done, len(jobs))
    problems = list(problem_of.values())
    for problem in _make_all(remaining, workers or os.cpu_count() or 1, stop):
        done += 1
        problems += [] if problem is None else [problem]
        tell(done, len(jobs))
    if done < len(jobs):
        raise Stopped(f"stopped after {done} of {len(jobs)} studies; the next call goes on from there")
    records = {study: record for study, record in recorded(out).items() if record["options"] == digest and record["inputs"]}
    problems.sort(key=str)
    rows = _write_summary(out, task, options, records, problems)
    if problems:
        raise DataError(f"{len(problems)} studies are left out; {len(records)} are prepared", problems)
    if not rows:
        raise DataError("no slice was kept; choose others by --select and --keep, or unlabelled ones by --negatives")
    return Prepared(len(records), len(remaining), len(rows), sum(row[HEADER.index("positive")] == "1" for row in rows))


def _picture_path(task: Mediastinum | Slices, source: Source, number: int) -> str | None:
    """Return the path of a study's picture relative to `out`, or None after the first `PICTURES` studies.

    In the layout midline every folder without a leading dot is a study, so the pictures' folder gets a dot.
    """
    folder = f".{PICTURE_FOLDER}" if task.layout == "midline" else PICTURE_FOLDER
    return f"{folder}/{source.study}.png" if number < PICTURES else None


def _options_of(task: Mediastinum | Slices, prefix: str) -> dict[str, Any]:
    """Return all options that decide the files that are made."""
    settings = asdict(task)
    del settings["selection"]
    choice = task.selection
    return {
        "layout": task.layout, **settings, "select": choice.mode, "keep": choice.limit, "negatives": choice.negatives,
        "prefix": prefix,
    }  # fmt: skip


def _require_apart(out: Path, images: Path, labels: Path | None) -> None:
    for folder in (images, labels) if labels else (images,):
        if out.resolve().is_relative_to(folder.resolve()):
            raise RelayError(f"{out} lies in {folder}, which is only read; name another folder to write to")


def _leave_out_taken(
    sources: list[Source], problem_of: dict[str, Problem], out: Path
) -> tuple[list[Source], dict[str, Problem]]:
    """Return the studies whose ids no folder beside `out` uses, and the problems with those of the others added."""
    taken = studies_beside(out)
    problem_of = problem_of | {
        source.study: Problem(
            source.image.name,
            f"is study {source.study}, which {taken[source.study]} has too (duplicate study ids over sites); "
            "--prefix HOSPITAL_ stands before all ids",
        )
        for source in sources
        if source.study in taken
    }
    return [source for source in sources if source.study not in problem_of], problem_of


def _require_same_options(out: Path, layout: str, options: str, current: Set[str]) -> None:
    """Refuse to mix slices of different layouts or options in one folder.

    Args:
        out: the hospital's folder.
        layout: the layout of this call.
        options: digest of the options of this call.
        current: ids of the studies of this call.

    Raises:
        RelayError: if `out` holds another layout, or a study with other options that is not among `current`.
    """
    for study, record in recorded(out).items():
        if record["layout"] != layout:
            raise RelayError(f"{out} holds slices in the layout {record['layout']}; name another folder, or delete it")
        if study not in current and record["options"] != options:
            raise RelayError(
                f"{out} holds the study {study}, made with other options, and it is not among the volumes now; "
                "name another folder, or delete this one"
            )


def _clear(out: Path, unusable: Iterable[str], whole: bool) -> None:
    """Delete what an interrupted call left half-written, and what earlier calls made of studies that are unusable now.

    Delete the table too, unless all studies are prepared (`whole`), since it must not name files that do not exist.
    """
    for leftover in (out / RECORDS).glob("*.making"):
        shutil.rmtree(leftover)
    for leftover in (*(out / RECORDS).glob(".writing-*"), *out.glob(".writing-*")):
        leftover.unlink()
    dropped = [study for study in unusable if read_record(out, study)]
    if dropped or not whole:
        (out / TABLE).unlink(missing_ok=True)
    for study in dropped:
        forget(out, study)


def _make_all(jobs: list[PreparationJob], workers: int, stop: Callable[[], bool]) -> Iterator[Problem | None]:
    """Yield what `PreparationJob.make` returns for each job, in the order in which they end.

    When `stop` returns True no further job starts, and the jobs in progress are finished.
    """
    if min(workers, len(jobs)) <= 1:
        for job in jobs:
            if stop():
                return
            yield job.make()
        return
    waiting, running = iter(jobs), set[Future[Problem | None]]()
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(workers, len(jobs)), context, _initialise_worker) as pool:
            while True:
                while len(running) < workers and not stop() and (next_job := next(waiting, None)) is not None:
                    running.add(pool.submit(next_job.make))
                if not running:
                    return
                finished, running = wait(running, POLL, FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
    except BrokenProcessPool:
        raise RelayError("a process that prepared a study was killed (memory?); call again with fewer --workers") from None


def _initialise_worker() -> None:
    """Set up a worker process: the parent handles Ctrl-C, and SimpleITK uses a single thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _write_summary(
    out: Path, task: Mediastinum | Slices, options: dict[str, Any], records: dict[str, Record], problems: list[Problem]
) -> list[list[str]]:
    """Write the table and the report; return the table's rows."""
    rows = [row for record in records.values() for row in record["rows"]]
    if task.layout == "mediastinum" and rows:
        write_atomically(out / TABLE, csv_table([HEADER, *rows]).encode())
    pictures = [(study, record["picture"]) for study, record in records.items() if record["picture"]]
    facts = {study: record["facts"] for study, record in records.items()}
    write_atomically(out / REPORT, report_text(options, task.word, facts, problems, pictures[:PICTURES]).encode())
    return rows
