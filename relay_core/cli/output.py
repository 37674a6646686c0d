"""Output of a training's events: progress bars on a terminal, plain lines elsewhere, and JSON lines for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from relay_core import events
from relay_core.errors import RelayError
from relay_core.events import Emit, Event
from relay_core.metrics import headline


def tee(*sinks: Emit) -> Emit:
    """Return an `Emit` that hands each event to all of `sinks`."""

    def emit(event: Event) -> None:
        for sink in sinks:
            sink(event)

    return emit


class JsonLines:
    """Writes each event as one line of JSON, flushed at once."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def __call__(self, event: Event) -> None:
        """Write an event as one line."""
        print(json.dumps(event.to_json()), file=self.stream, flush=True)


class CountLines:
    """Writes `{"event": "progress", "done": n, "total": m}` lines, at most one every `seconds`, and one at the end.

    Args:
        stream: the stream to write to.
        few: totals up to this one are not reported.
        seconds: least time between two lines.
        clock: returns the time in seconds.
    """

    def __init__(
        self, stream: IO[str], few: int = 0, seconds: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream, self.few, self.seconds, self.clock = stream, few, seconds, clock
        self._next = clock()

    def __call__(self, done: int, total: int) -> None:
        """Write a line if one is due."""
        if total > self.few and ((now := self.clock()) >= self._next or done == total):
            self._next = now + self.seconds
            print(json.dumps({"event": "progress", "done": done, "total": total}), file=self.stream, flush=True)


@contextmanager
def counting(what: str, as_json: bool) -> Iterator[Callable[[int, int], object]]:
    """Yield a function that shows (done, total) of a long piece of work: `CountLines`, or a bar on a terminal."""
    if as_json:
        yield CountLines(sys.stdout)
        return
    columns = TextColumn(what), BarColumn(), TextColumn("{task.completed}/{task.total}")
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class EventLog:
    """Appends each event to a file of JSON lines; the file appears with the first event."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        """Append an event as one line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            JsonLines(file)(event)


def duration(seconds: float) -> str:
    """Return a number of seconds as text: 75 gives `1:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Terminal:
    """Shows events as bars on a terminal, and as a line now and then elsewhere.

    Use it as a context manager, so that the bars end. With `brief` it shows bars and warnings alone, for many trainings in
    turn.
    """

    def __init__(self, title: str = "", console: Console | None = None, brief: bool = False) -> None:
        self.brief = brief
        self.title = f"{title} " if title else ""
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.bars: Progress | None = None
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bars = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[note]}"), TimeElapsedColumn(), console=self.console,
            )  # fmt: skip
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bars is not None:
            self.bars.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, markup=False)

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, events.Warned):
            self.say(f"warning: {event.site}: {event.message}")
        elif isinstance(event, events.Started):
            self._start(event)
        elif isinstance(event, events.Step):
            self._step(event)
        elif self.brief:
            return
        elif isinstance(event, events.Scores):
            metric, value = headline(event.scores)
            self.say(f"{self.title}after {event.site}: {metric} on {event.test_site} {value:.3f}")
        elif isinstance(event, events.Finished):
            self.say(f"{self.title}{event.site}: {event.step} steps in {duration(event.seconds)}")

    def _start(self, event: events.Started) -> None:
        if self.bars is not None:
            if event.site in self.tasks:
                self.bars.remove_task(self.tasks[event.site])
            name = f"{self.title}{event.site}"
            self.tasks[event.site] = self.bars.add_task(name, total=event.steps, completed=event.step, note="")
        if self.brief:
            return
        resumed = f", going on from step {event.step}" if event.step else ""
        self.say(
            f"{self.title}{event.site}: {event.strategy} on {event.images} images, {event.steps} steps, "
            f"{event.device}{resumed}"
        )

    def _step(self, event: events.Step) -> None:
        note = f"{event.images_per_second:.1f} images/s, {duration(event.eta_seconds)} left"
        if self.bars is not None:
            loss = f"solver {event.losses['solver']:.3f}, " if "solver" in event.losses else ""
            self.bars.update(self.tasks[event.site], completed=event.step, note=loss + note)
            return
        if self.brief:
            return
        losses = ", ".join(f"{name} {value:.3f}" for name, value in event.losses.items())
        self.say(f"{self.title}{event.site} {event.step}/{event.steps}: {losses} ({note})")


class TensorBoard:
    """Writes scalars and pictures for TensorBoard (`pip install relay-learning[tensorboard]`)."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise RelayError("--tensorboard needs TensorBoard: pip install 'relay-learning[tensorboard]'") from None
        self.folder = folder
        self.writers: dict[str, Any] = {}
        self.make = SummaryWriter

    def __call__(self, event: Event) -> None:
        """Write an event's numbers or picture."""
        if event.site not in self.writers:
            self.writers[event.site] = self.make(str(self.folder / event.site))
        writer = self.writers[event.site]
        if isinstance(event, events.Step):
            for name, value in {**{f"loss/{name}": loss for name, loss in event.losses.items()}, **event.figures}.items():
                writer.add_scalar(name, value, event.step)
            writer.add_scalar("images_per_second", event.images_per_second, event.step)
        elif isinstance(event, events.Scores):
            for name, value in event.scores.items():
                if value is not None:
                    writer.add_scalar(f"{name}/{event.test_site}", value, event.step)
        elif isinstance(event, events.Samples):
            import numpy as np
            from PIL import Image

            with Image.open(event.path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            writer.add_image(Path(event.path).stem, pixels, event.step, dataformats="HWC")
        writer.flush()
