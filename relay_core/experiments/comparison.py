"""Strategies side by side: every one on the same run file, budget and augmentation, with several seeds; one report.

Written below the output folder: `<strategy>/seed-<n>/` is a run as `relay train` leaves it, with `result.json` once it is
finished; `study.json`, `study.md` and `study.png` are the report. Called again, a study goes on where it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relay_core import events
from relay_core.config import SEQUENCES, STRATEGIES, RunFile, load_run, suggestion
from relay_core.errors import RunFileError
from relay_core.events import Emit, Event, Stop
from relay_core.experiments.report import Outcome, write_report
from relay_core.files import write_atomically

if TYPE_CHECKING:
    import torch

_FOLDER = re.compile(r"[^\w.=-]+")
PLAIN = "-plain"
"""Ending of a strategy's name that leaves its augmentation out."""
DEFAULT = ("relay", "sequential", "joint", "local", "si", "owm", "ewc", "lwf", "sequential-plain")


def overrides_of(text: str) -> list[str]:
    """What a line of a study sets in the run file.

    Args:
        text: a strategy, or a kind of baseline (local, sequential, joint), `-plain` at its end: not augmented; then, with
            spaces between, settings of its own: `ewc strategy.kwargs.strength=1000`.

    Raises:
        RunFileError: no such strategy.
    """
    name, *own = text.split()
    known = [*(n for n in STRATEGIES if n != "baseline"), *SEQUENCES]
    strategy = name.removesuffix(PLAIN)
    if strategy not in known and ":" not in strategy:
        raise RunFileError(
            f"--strategies: {strategy!r} is not known{suggestion(strategy, known)}; known: {', '.join(known)}"
        )
    chosen = f"{{name: baseline, kwargs: {{mode: {strategy}}}}}" if strategy in SEQUENCES else f"{{name: '{strategy}'}}"
    return [f"strategy={chosen}", *(["train.augment=none"] if name.endswith(PLAIN) else []), *own]


@dataclass
class Comparison:
    """A study to be run, or gone on with.

    Args:
        run: run file or recipe.
        strategies: see `overrides_of`; the first is the one that the others are compared with.
        seeds: so many, from the run file's random_seed on.
        out: folder.
        data_root: folder that the sites' folders lie in; None: the run file's `root_path`.
        device: to train on.
        overrides: `key.path=value` lines for every run.
        emit: receives the trainings' events.
        tell: told of each run that is finished: its outcome, runs done and in all.
        stop: asked after every step.
    """

    run: str
    strategies: Sequence[str]
    seeds: int
    out: Path
    data_root: Path | None
    device: torch.device
    overrides: Sequence[str] = ()
    emit: Emit = events.ignore
    tell: Callable[[Outcome, int, int], object] = lambda outcome, done, total: None
    stop: Stop = events.never

    def __call__(self) -> list[Outcome]:
        """Run what is missing, write the report, return every outcome.

        Raises:
            RunFileError: an unknown strategy, one that does not fit the run file, or OUT holds a study of another file.
            Stopped: asked to stop; the next call goes on.
            RelayError: one of its kinds, see `relay_core.errors`.
        """
        runs = list(self._runs())
        for _, _, run in runs:  # before hours of work: all of them can be run
            for site in run.sites():
                site.require_consistent()
        self._keep_run_file()
        outcomes = []
        for name, seed, run in runs:
            outcome = self._outcome(name, seed, run)
            outcomes.append(outcome)
            self.tell(outcome, len(outcomes), len(runs))
        write_report(self.out, outcomes, f"{Path(self.run).name}, {self.seeds} seed{'s' * (self.seeds > 1)}")
        return outcomes

    def _runs(self) -> Iterator[tuple[str, int, RunFile]]:
        base = load_run(self.run, self.overrides)
        first = base.site(base.task_ids[0]).random_seed
        for seed in range(first, first + self.seeds):
            for name in dict.fromkeys(self.strategies):
                own = overrides_of(name)
                yield name, seed, load_run(self.run, [*self.overrides, f"random_seed={seed}", *own])

    def _keep_run_file(self) -> None:
        """Runs of one study are of one run file."""
        path, text = self.out / "run.yaml", load_run(self.run, self.overrides).canonical()
        if path.is_file() and path.read_text() != text:
            raise RunFileError(f"{self.out} holds a study of another run file or other --set; choose another --out")
        write_atomically(path, text.encode())

    def _outcome(self, name: str, seed: int, run: RunFile) -> Outcome:
        from relay_core.engine import RelayRun

        folder = self.out / _FOLDER.sub("-", name) / f"seed-{seed}"
        kept = folder / "result.json"
        if kept.is_file():
            return Outcome.from_json(json.loads(kept.read_text()))
        clock = _Clock(folder / "seconds.json", self.emit)
        matrices = RelayRun(run, folder, self.data_root, self.device, None, True, clock, self.stop)()
        outcome = Outcome(name, seed, matrices, clock.seconds)
        write_atomically(kept, json.dumps(outcome.to_json(), indent=1).encode())
        return outcome


@dataclass
class _Clock:
    """Passes events on and adds up how long sites trained, over all calls that it took."""

    path: Path
    emit: Emit

    @property
    def known(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        return found

    @property
    def seconds(self) -> float:
        """Of training, all sites."""
        return round(sum(self.known.values()), 3)

    def __call__(self, event: Event) -> None:
        """Note the end of a site's training."""
        if isinstance(event, events.Finished):
            write_atomically(self.path, json.dumps({**self.known, event.site: event.seconds}).encode())
        self.emit(event)
