"""Run benchmarks one after the other, each with its time; what fails or is too slow does not stop the others.

    python -m benchmarks.series --steps benchmarks/quick.txt --out benchmarks/results/bench

A line of the steps is `NAME SECONDS BENCHMARK ARGUMENTS...`. Each step's record goes to OUT/NAME.json, what it printed to
OUT/NAME.log, and all of it together to OUT/summary.json and OUT/summary.md. A step that was ended leaves what it had.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT, Table, commit, told

GRACE = 5
"""Seconds between the request to end and the end."""


@dataclass
class Step:
    """One benchmark, and what came of it."""

    name: str
    limit: float
    words: list[str]
    state: str = "left out: no time"
    seconds: float = 0.0

    @classmethod
    def read(cls, line: str) -> Step:
        """A step of a line."""
        name, limit, *words = line.split()
        return cls(name, float(limit), words)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the steps; return the summary."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.series", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--within", type=float, default=3600, metavar="SECONDS", help="for all of them")
    parser.add_argument("--toy", action="store_true", help="the sizes of a test, and no limits; the figures mean nothing")
    args = parser.parse_args(argv)
    lines = (line.partition("#")[0].strip() for line in args.steps.read_text().splitlines())
    steps = [Step.read(line) for line in lines if line]
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for step in steps:
        left = args.within - (time.monotonic() - began) - GRACE
        limit = None if args.toy else min(step.limit, left)
        if limit is None or left > 1:
            print(f"{step.name}{'' if limit is None else f': at most {limit:.0f} s'}", file=sys.stderr, flush=True)
            run(step, limit, args.out, args.toy)
        summary = summarise(steps, args.out, time.monotonic() - began)
    print((args.out / "summary.md").read_text(), flush=True)
    return summary


def run(step: Step, limit: float | None, out: Path, toy: bool) -> None:
    """Run one step, for at most `limit` seconds where there is one."""
    benchmark, *words = step.words
    record = out / f"{step.name}.json"
    record.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *words, "--json", str(record), *(["--toy"] if toy else [])]
    begin = time.monotonic()
    with (out / f"{step.name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(limit)
            step.state = "ok" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            step.state = f"too slow: ended after {limit:.0f} s"
        except BaseException:
            step.state = "interrupted"
            raise
        finally:
            end(process)
    step.seconds = round(time.monotonic() - begin, 1)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it started."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                continue
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # who heeds no SIGINT, of the processes that it started


def summarise(steps: list[Step], out: Path, seconds: float) -> dict[str, Any]:
    """Write what there is so far, as JSON and as Markdown; return it."""
    records = {step.name: _read(out / f"{step.name}.json") for step in steps}
    summary = {
        **commit(),
        "seconds": round(seconds, 1),
        "steps": [asdict(step) for step in steps],
        "records": {name: record for name, record in records.items() if record is not None},
    }
    parts = []
    for step in steps:
        parts.append(f"\n## {step.name}\n\n`python -m benchmarks.{' '.join(step.words)}`: {step.state}, {step.seconds:g} s")
        record = records[step.name]
        if record is None:
            log = out / f"{step.name}.log"
            parts += ["", "```", *(log.read_text(errors="replace").splitlines()[-5:] if log.is_file() else []), "```"]
            continue
        for table in record["tables"]:
            shown = Table(table["title"], table["columns"], rows=table["rows"])
            parts += shown.lines() if shown.rows else []
        parts += ["", *record["notes"], told(record)]
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    (out / "summary.md").write_text("\n".join(parts).strip() + "\n")
    return summary


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


if __name__ == "__main__":
    sys.exit(any(step["state"] != "ok" for step in main()["steps"]))
