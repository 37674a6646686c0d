"""Whether the ops are right on a device: the library tries itself out, their tests, and the tools of compute-sanitizer.

    python -m benchmarks.check_ops tests        # builds the GPU's library first, where it is missing
    python -m benchmarks.check_ops sanitizer

The tests are those of tests/cuda in the device's own form (`RELAY_TEST_FORMS`). Under compute-sanitizer the library tries
itself out: every op, type and memory format with two derivatives.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from benchmarks.record import ROOT, Record, Table, script
from relay_core.cuda import build, loader, native
from relay_core.engine import choose_device

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FILES = ("test_ops.py", "test_forms.py", "test_derivatives.py")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("part", choices=["tests", "sanitizer"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", default="", metavar="EXPRESSION", help="tests: pytest's -k")
    parser.add_argument("--seconds", type=float, default=120, help="for the tests, and for each tool")


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill one table."""
    device = choose_device(args.device)
    build_missing(device, record)
    table = record.table(f"The ops on {device}", {"check": "", "result": "", "seconds": ".1f", "what it says": ""})
    {"tests": tests, "sanitizer": sanitizer}[args.part](device, args, table)


def build_missing(device: torch.device, record: Record) -> None:
    """Compile the library of this GPU, for no other, unless one is there."""
    if device.type == "cuda" and not (native.FOLDER / native.file_name("cuda")).is_file():
        major, minor = torch.cuda.get_device_capability(device)
        begin = time.monotonic()
        try:
            build.build_cuda(native.FOLDER, architectures=(10 * major + minor,))
            record.facts["build_seconds"] = round(time.monotonic() - begin, 1)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            record.note(f"The library was not built: {error}")
        loader.forget()
    record.facts |= {"device": str(device), "library": loader.backend(device.type, device.index)}


def tests(device: torch.device, args: argparse.Namespace, table: Table) -> None:
    """The library's own check, then pytest."""
    self_check(args, table, [], "the library tries itself out")
    form = loader.backend(device.type, device.index)
    report = ROOT / f".pytest-ops-{os.getpid()}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=default"]
    command += [*(f"tests/cuda/{name}" for name in FILES), f"--junitxml={report}", *(["-k", args.only] if args.only else [])]
    try:
        plain = {"RELAY_TEST_FORMS": form, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        code, seconds, said = timed([*command, "-p", "no:cacheprovider"], args.seconds, **plain)
        found = ElementTree.parse(report).getroot().find("testsuite") if report.is_file() else None
        counts = (
            ""
            if found is None
            else ", ".join(f"{name} {found.get(name)}" for name in ("tests", "failures", "errors", "skipped"))
        )
        table.add(f"tests/cuda, form {form}", code, seconds, counts or said)
    finally:
        report.unlink(missing_ok=True)


def sanitizer(device: torch.device, args: argparse.Namespace, table: Table) -> None:
    """The library's own check under each tool."""
    tool = find_sanitizer()
    for name in TOOLS:
        if device.type != "cuda" or tool is None:
            table.add(
                name, "not run", None, "no GPU" if device.type != "cuda" else "compute-sanitizer is not on this machine"
            )
            continue
        self_check(args, table, [tool, "--tool", name, "--error-exitcode", "9"], name)


def self_check(args: argparse.Namespace, table: Table, before: list[str], name: str) -> None:
    """Run the library's own check in a process, after the words `before`."""
    command = [*before, sys.executable, "-m", "benchmarks.check_ops", TRY, args.device]
    table.add(name, *timed(command, args.seconds))


def timed(command: list[str], limit: float, **variables: str) -> tuple[str, float, str]:
    """Run a command; return ok, failed or too slow, its seconds, and the last line that it printed."""
    begin = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **variables}, timeout=limit, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return "too slow", time.monotonic() - begin, f"ended after {limit:g} s"
    lines = [line.strip("= ") for line in (done.stdout + done.stderr).splitlines() if line.strip("= ")]
    if done.returncode:
        print("\n".join(lines[-40:]), file=sys.stderr)
    return "failed" if done.returncode else "ok", time.monotonic() - begin, lines[-1] if lines else ""


def find_sanitizer() -> str | None:
    """Path of compute-sanitizer: on the PATH, beside nvcc, or in /usr/local/cuda."""
    beside = [str(Path(tool).resolve().parent)] if (tool := build.nvcc()) else []
    return shutil.which(
        "compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *beside, "/usr/local/cuda/bin"])
    )


TRY = "try"
"""What runs in a process of its own: `python -m benchmarks.check_ops try DEVICE`."""


def try_out(name: str) -> int:
    """Use the library on a device, which tries it out; return 1 where it is not used."""
    device = choose_device(name)
    found = loader.library(device.type, device.index)
    print(f"{loader.backend(device.type, device.index)}: {found if isinstance(found, str) else found._name}")
    return 1 if isinstance(found, str) and device.type == "cuda" else 0


_measured = script(__doc__, arguments, measure, toy={"only": "test_empty_and_tiny", "seconds": 900})


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure; or try the library out."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == [TRY]:
        sys.exit(try_out(given[1]))
    return _measured(given)


if __name__ == "__main__":
    main()
