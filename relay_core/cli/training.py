"""Trainings and comparisons as the command line runs them: signals, event sinks, processes. Heavy imports are late."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from relay_core.errors import RunFileError
from relay_core.events import Emit, Stop

if TYPE_CHECKING:
    from relay_core.config import RunFile
    from relay_core.metrics import ScoreMatrix


@contextmanager
def stop_on_signal(said: str = "stopping: writing a checkpoint") -> Iterator[Stop]:
    """Yield a function that returns whether SIGTERM, SIGINT or SIGHUP has arrived; a second SIGINT ends the process at once.

    Each signal is answered with the line `said` on standard error.
    """
    asked = False

    def handler(number: int, frame: Any) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        print(said, file=sys.stderr, flush=True)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    previous_handlers = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield lambda: asked
    finally:
        for number, previous in previous_handlers.items():
            signal.signal(number, previous)


@contextmanager
def _sinks(out: Path, title: str, as_json: bool, tensorboard: bool, brief: bool = False) -> Iterator[Emit]:
    """Yield an `Emit` that hands events to the terminal or standard output, to `events.jsonl`, and to TensorBoard."""
    from relay_core.cli.output import EventLog, JsonLines, TensorBoard, Terminal, tee

    with ExitStack() as stack:
        sinks: list[Emit] = [EventLog(out / "events.jsonl")]
        sinks.append(JsonLines(sys.stdout) if as_json else stack.enter_context(Terminal(title, brief=brief)))
        if tensorboard:
            sinks.append(TensorBoard(out / "tensorboard"))
        yield tee(*sinks)


def _tell_notes(run: RunFile) -> None:
    """Say what a file in the published vocabulary asks for that is done otherwise here."""
    notes = run.notes
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        notes.append("train.batch_size counts the images of all devices together; the published code counts each device's")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def run_relay(
    run: str, overrides: list[str], out: Path, data_root: Path | None, *, device: str, title: str = "",
    site: int | None = None, resume: bool = False, as_json: bool = False, tensorboard: bool = False,
    pretraining: bool = True, until: Literal["end", "solver"] = "end", grids: int | None = None,
) -> dict[str, ScoreMatrix]:  # fmt: skip
    """Train a run file or one of its sites; return the site x test-set matrices.

    Raises:
        RelayError: the run cannot be trained or evaluated; `relay_core.errors` lists the kinds.
    """
    from relay_core.config import load_run
    from relay_core.engine import RelayRun, choose_device, processes

    loaded = load_run(run, overrides)
    loaded.pretraining = pretraining
    if site is not None and site not in loaded.all_ids:
        raise RunFileError(f"--site {site}: the run file has the sites {', '.join(map(str, loaded.all_ids))}")
    chosen_device = choose_device(device)
    quiet = int(os.environ.get("RANK", "0")) > 0
    if not quiet:
        _tell_notes(loaded)
    with processes(chosen_device), stop_on_signal() as stop:
        if quiet:
            return RelayRun(loaded, out, data_root, chosen_device, site, resume, stop=stop, until=until)()
        with _sinks(out, title, as_json, tensorboard) as emit:
            return RelayRun(loaded, out, data_root, chosen_device, site, resume, emit, stop, until=until, grids=grids)()


def run_comparison(
    run: str, strategies: list[str], seeds: int, out: Path, data_root: Path | None, *, device: str, overrides: list[str],
    as_json: bool = False,
) -> None:  # fmt: skip
    """Run a comparison, print one line for each run, and say where the report is.

    Raises the errors of `Comparison`.
    """
    from relay_core.cli.output import duration
    from relay_core.engine import choose_device
    from relay_core.experiments import Comparison

    def tell(outcome: Any, done: int, total: int) -> None:
        average = outcome.average()
        if as_json:
            summary = {"strategy": outcome.name, "seed": outcome.seed, "average": average, "seconds": outcome.seconds}
            print(json.dumps({"event": "run", **summary, "done": done, "total": total}), flush=True)
            return
        print(f"{done}/{total} {outcome.name}, seed {outcome.seed}: {outcome.main.title} {outcome.main.text(average)}, "
              f"{duration(outcome.seconds)}", flush=True)  # fmt: skip

    with stop_on_signal() as stop, _sinks(out, "", as_json, False, brief=True) as emit:
        Comparison(run, strategies, seeds, out, data_root, choose_device(device), overrides, emit, tell, stop)()
    if as_json:
        print(json.dumps({"report": [str(out / name) for name in ("study.md", "study.json", "study.png", "cost.png")]}))
    else:
        print(f"\n{(out / 'study.md').read_text().partition('![')[0].rstrip()}\n\nwritten to {out}")
