"""Comparison of strategies: each gets the same run file, budget and augmentation, with several seeds; one report shows all.

Written below the output folder: `<strategy>/seed-<n>/` is a run as `relay train` leaves it, with `result.json` once it is
finished, and `course.json` beside it; `study.json`, `study.md`, `study.png` and `cost.png` are the report. Called again, a
comparison goes on where it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from relay_core import events
from relay_core.config import SEQUENCES, STRATEGIES, RunFile, load_run, suggestion
from relay_core.errors import RunFileError
from relay_core.events import Emit, Stop
from relay_core.experiments.report import PLAIN, Outcome, write_report
from relay_core.files import write_atomically

if TYPE_CHECKING:
    import torch

_FOLDER = re.compile(r"[^\w.=-]+")
DEFAULT = ("relay", "sequential", "joint", "local", "si", "owm", "ewc", "lwf", "sequential-plain")


def overrides_of(text: str) -> list[str]:
    """Return what one entry of a comparison sets in the run file, as `key.path=value` lines.

    Args:
        text: a strategy, or a kind of baseline (local, sequential, joint), with `-plain` at its end if it is not to be
            augmented; then, separated by spaces, settings of its own: `ewc strategy.kwargs.strength=1000`.

    Raises:
        RunFileError: there is no such strategy.
    """
    name, *settings = text.split()
    known_names = [*(n for n in STRATEGIES if n != "baseline"), *SEQUENCES]
    strategy = name.removesuffix(PLAIN)
    if strategy not in known_names and ":" not in strategy:
        raise RunFileError(
            f"--strategies: {strategy!r} is not known{suggestion(strategy, known_names)}; known: {', '.join(known_names)}"
        )
    setting = f"{{name: baseline, kwargs: {{mode: {strategy}}}}}" if strategy in SEQUENCES else f"{{name: '{strategy}'}}"
    return [f"strategy={setting}", *(["train.augment=none"] if name.endswith(PLAIN) else []), *settings]


@dataclass
class Comparison:
    """A comparison of strategies that is run, or gone on with, when it is called.

    Args:
        run: run file or recipe.
        strategies: entries as `overrides_of` takes them; the others are compared with the first.
        seeds: number of seeds, counted up from the run file's random_seed.
        out: the folder to write to.
        data_root: the folder that the sites' folders lie in; None takes the run file's `root_path`.
        device: the device to train on.
        overrides: `key.path=value` lines for every run.
        emit: receives the trainings' events.
        tell: called after each run with its outcome, the number of finished runs and the number of all runs.
        stop: asked after every step whether to stop.
        points: how often in a site's training the solver is scored on the sites seen by then, its cost beside it.
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
    points: int = 4
    _digests: dict[str, dict[str, str]] = field(default_factory=dict, init=False)

    def __call__(self) -> list[Outcome]:
        """Run what is missing, write the report, return every outcome.

        Raises:
            RunFileError: a strategy is unknown or does not fit the run file, or OUT holds a comparison of another run file.
            Stopped: the comparison was asked to stop; the next call goes on.
            RelayError: a run cannot be trained or evaluated; `relay_core.errors` lists the kinds.
        """
        runs = list(self._runs())
        for _, _, run in runs:  # before hours of work: check that all of them can be run
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
        first_seed = base.site(base.task_ids[0]).random_seed
        for seed in range(first_seed, first_seed + self.seeds):
            for name in dict.fromkeys(self.strategies):
                strategy_overrides = overrides_of(name)
                yield name, seed, load_run(self.run, [*self.overrides, f"random_seed={seed}", *strategy_overrides])

    def _keep_run_file(self) -> None:
        """Write the run file to OUT, or refuse an OUT that holds a comparison of another one.

        Raises:
            RunFileError: OUT holds another run file.
        """
        path, text = self.out / "run.yaml", load_run(self.run, self.overrides).canonical()
        if path.is_file() and path.read_text() != text:
            raise RunFileError(f"{self.out} holds a study of another run file or other --set; choose another --out")
        write_atomically(path, text.encode())

    def _outcome(self, name: str, seed: int, run: RunFile) -> Outcome:
        from relay_core.engine import Course, RelayRun

        folder = self.out / _FOLDER.sub("-", name) / f"seed-{seed}"
        result_file = folder / "result.json"
        if result_file.is_file():
            saved = json.loads(result_file.read_text())
            known = saved.get("test_sets")  # older versions did not say: what can be scored again is
            if self._same_test_sets(run, known) if known else not any(folder.rglob("step-*.safetensors")):
                return replace(Outcome.from_json(saved), trained=[site.name for site in run.sites()])
        course = Course(folder / "course.json", self.points)
        relay_run = RelayRun(run, folder, self.data_root, self.device, None, True, self.emit, self.stop, course)
        trained = [site.name for site in run.sites()]
        outcome = Outcome(
            name, seed, relay_run(), course.seconds, course.operations, course.points, trained, relay_run.by_subject()
        )
        test_sets = {site: data.digest for site, data in relay_run.tests.items()}
        write_atomically(result_file, json.dumps({**outcome.to_json(), "test_sets": test_sets}, indent=1).encode())
        return outcome

    def _same_test_sets(self, run: RunFile, scored_on: dict[str, str]) -> bool:
        """Return whether a finished run was scored on the test sets that are here now, if there are any."""
        from relay_core.engine import test_set_digests

        key = json.dumps([run.site(i).model_dump(mode="json", include={"dataset", "model"}) for i in run.all_ids])
        if key not in self._digests:
            self._digests[key] = test_set_digests(run, self.data_root)
        return not self._digests[key] or self._digests[key] == scored_on
