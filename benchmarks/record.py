"""The shape that all benchmarks share: arguments, tables, and a record of what was measured, where and on which code.

A script has two functions and a line:

    def arguments(parser): ...                      # its own options
    def measure(args, record): ...                  # record.table(...), then a row after the other
    main = script(__doc__, arguments, measure, toy={"repeat": 1})

`--toy` takes the sizes of a test, whatever else is given. `--json FILE` writes the record, anew with every row, so that a
run that is cut short leaves what it had. Rows are printed as Markdown as they come.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
QUIET = 0.1
"""Cores that other work may use, as a share of all, while a machine still counts as quiet."""

TOY = [
    "model.kwargs.img_resolution=16", "model.kwargs.w_img_dim=8", "model.kwargs.w_label_dim=8", "train.batch_size=4",
    "model.kwargs.solver_kwargs.backbone=plain", "model.kwargs.solver_kwargs.base_channels=4",
    *(f"model.kwargs.{d}_{kind}_kwargs.{size}" for d in "GD" for kind in ("img", "label")
      for size in [f"{'synthesis_kwargs.' if d == 'G' else ''}channel_{n}" for n in ("base=128", "max=8")]),
]  # fmt: skip
"""What `--toy` lays over a recipe, as `--set` does: tiny networks."""


@dataclass
class Table:
    """Rows of figures under headings."""

    title: str
    columns: Mapping[str, str]
    """Heading -> how its figures are printed, a format specification; \"\" for words."""
    changed: Callable[[], None] = lambda: None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, *values: object) -> None:
        """Add a row, in the order of the headings, and print it; None is a figure that there is not."""
        self.rows.append(dict(zip(self.columns, values, strict=True)))
        lines = self.lines()
        print("\n".join(lines if len(self.rows) == 1 else lines[-1:]), flush=True)
        self.changed()

    def lines(self) -> list[str]:
        """The table as Markdown."""
        marks = ["--:" if kind else "---" for kind in self.columns.values()]
        heads = [f"\n{self.title}\n", f"| {' | '.join(self.columns)} |", f"|{'|'.join(marks)}|"]
        return heads + [
            f"| {' | '.join(self._cell(row[name], kind) for name, kind in self.columns.items())} |" for row in self.rows
        ]

    @staticmethod
    def _cell(value: Any, kind: str) -> str:
        return "" if value is None else format(value, kind) if kind else str(value)


class Record:
    """What one run of one benchmark measured."""

    def __init__(self, benchmark: str, args: argparse.Namespace, given: Sequence[str]) -> None:
        self.tables: list[Table] = []
        self.notes: list[str] = []
        self.facts: dict[str, Any] = {}
        """Figures beside the tables, by name."""
        self._file: Path | None = args.json
        self._head = {
            "benchmark": benchmark,
            "command": " ".join(["python", "-m", f"benchmarks.{benchmark}", *given]),
            "toy": args.toy,
            **commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "arguments": {name: value for name, value in vars(args).items() if name not in ("json", "toy")},
        }
        self._began, self._busy = time.monotonic(), _busy_seconds()

    def table(self, title: str, columns: Mapping[str, str]) -> Table:
        """Begin a table."""
        self.tables.append(Table(title, columns, self._write))
        return self.tables[-1]

    def note(self, text: str) -> None:
        """Keep a sentence that a reader of the figures needs, and print it."""
        self.notes.append(text)
        print(f"\n{text}", flush=True)
        self._write()

    def finish(self) -> dict[str, Any]:
        """Print where this was measured; return the record, written whole."""
        content = self.content() | {"complete": True}
        print(f"\n{told(content)}\n", flush=True)
        self._write(content)
        return content

    def content(self) -> dict[str, Any]:
        """The record so far, as JSON has it."""
        seconds = time.monotonic() - self._began
        other = max(0.0, (_busy_seconds() - self._busy) / max(seconds, 1e-9))
        return {
            **self._head,
            "complete": False,
            "seconds": round(seconds, 2),
            "machine": machine(),
            "other_work_cores": round(other, 2),
            "quiet": other <= QUIET * (os.cpu_count() or 1),
            "tables": [{"title": table.title, "columns": dict(table.columns), "rows": table.rows} for table in self.tables],
            "facts": self.facts,
            "notes": self.notes,
        }

    def _write(self, content: dict[str, Any] | None = None) -> None:
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._file.with_suffix(".new")
        unfinished.write_text(json.dumps(self.content() if content is None else content, indent=1, default=str))
        unfinished.replace(self._file)


def script(
    doc: str | None,
    arguments: Callable[[argparse.ArgumentParser], object],
    measure: Callable[[argparse.Namespace, Record], None],
    toy: Mapping[str, object],
) -> Callable[[Sequence[str] | None], dict[str, Any]]:
    """Make a benchmark's `main`: it takes arguments (those of the command line), measures, and returns the record.

    Args:
        doc: the script's docstring; its first line says what it does.
        arguments: adds the script's options.
        measure: measures, and fills the record.
        toy: what the options are under `--toy`.
    """
    name = Path(measure.__code__.co_filename).stem

    def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
        given = list(sys.argv[1:] if argv is None else argv)
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=(doc or "").partition("\n")[0])
        parser.add_argument(
            "--toy", action="store_true", help="the sizes of a test, whatever else is given; the figures mean nothing"
        )
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there")
        arguments(parser)
        args = parser.parse_args(given)
        if args.toy:
            vars(args).update(toy)
        record = Record(name, args, given)
        measure(args, record)
        return record.finish()

    return main


def told(content: Mapping[str, Any]) -> str:
    """One line that says where, when and on which code a record was made."""
    found = content["machine"]
    where = [
        found["cpu"],
        f"{found['cores']} cores",
        f"{found['memory_gib']} GiB",
        *found["gpus"],
        f"torch {found['torch']}",
    ]
    quiet = "a quiet machine" if content["quiet"] else f"NOT quiet: other work took {content['other_work_cores']} cores"
    code = f"{(content['commit'] or 'an unknown commit')[:7]}{' with changes' if content['changed'] else ''}"
    toy = "; TOY SIZES, the figures mean nothing" if content["toy"] else ""
    return f"Commit {code}, {content['date'][:10]}, {', '.join(where)}; {quiet}{toy}."


def commit() -> dict[str, Any]:
    """The commit of the code, and whether tracked files differ from it; without git, what RELAY_COMMIT says."""
    try:
        head, changes = (
            subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return {"commit": os.environ.get("RELAY_COMMIT"), "changed": None}
    return {"commit": head, "changed": bool(changes)}


def machine() -> dict[str, Any]:
    """The machine, as far as its speed depends on it."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        version = None
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": version,
        "gpus": _gpus(),
    }


def _gpus() -> list[str]:
    """The GPUs that this process has used torch for; a script without torch has none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [f"{one.name} ({one.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda})" for one in found]


def _busy_seconds() -> float:
    """Seconds of all cores that others than this process and its ended children have used since the machine began."""
    ticks = next((line.split()[1:] for line in _lines("/proc/stat") if line.startswith("cpu ")), [])
    busy = sum(int(n) for i, n in enumerate(ticks[:8]) if i not in (3, 4)) / os.sysconf("SC_CLK_TCK")
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return busy - sum(one.ru_utime + one.ru_stime for one in used)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
