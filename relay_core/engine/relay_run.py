"""A run: its sites are trained one after the other, and the solver is scored on every test set after each.

Each site hands its checkpoint to the next.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
import yaml
from torch import Tensor

from relay_core import distributed, events
from relay_core.config import DoubleGanKwargs, RunFile, SiteSettings, SlicedKwargs, Task
from relay_core.data import SiteData, data_error, has_test, load_site
from relay_core.engine import checkpoint
from relay_core.engine.checkpoint import Checkpoint
from relay_core.engine.course import Course
from relay_core.engine.evaluate import evaluate, load_solver, prediction_rows, write_matrices, write_picture
from relay_core.engine.scoring import SCORES, read_scores, scored_on, write_scores
from relay_core.engine.stream import Joined
from relay_core.engine.train import SiteTraining, train_site
from relay_core.errors import DataError, Problem, RunFileError
from relay_core.events import Emit, Stop
from relay_core.files import write_atomically
from relay_core.metrics import ScoreMatrix, metrics_of, scored_as
from relay_core.replay import resize_images, resize_labels
from relay_core.strategies import Images, Strategy, make_strategy

SAMPLES = 8
"""Number of generated images a site in a sample grid."""
UNTRAINED = "untrained.json"
"""Name of the file of the untrained solver's scores."""


@dataclass
class RelayRun:
    """One run on one machine: all its sites, or the one that this machine belongs to.

    Args:
        run: the run file.
        out: the folder for everything that is written.
        data_root: the folder that the sites' image folders lie in; None takes the run file's `root_path`.
        device: the device to train on.
        only: task_id of the only site to train, from the checkpoint that its settings name; None trains all sites.
        resume: go on where an earlier call stopped.
        emit: receives the events.
        stop: asked after every step whether to stop.
        course: keeps what the training costs along its way, and what the solver scores on the sites seen by then.
        until: `solver` stops where the solver of the one site is ready, though its generators may not be.
        grids: how many grids of samples to draw along a site's training where its settings do not say how often.
    """

    run: RunFile
    out: Path
    data_root: Path | None
    device: torch.device
    only: int | None = None
    resume: bool = False
    emit: Emit = events.ignore
    stop: Stop = events.never
    course: Course | None = None
    until: Literal["end", "solver"] = "end"
    grids: int | None = None
    tests: dict[str, SiteData] = field(default_factory=dict, init=False)
    _last_scores: dict[str, Any] = field(default_factory=dict, init=False)

    def __call__(self) -> dict[str, ScoreMatrix]:
        """Train and evaluate; return the site x test-set matrix of each metric.

        Raises:
            RelayError: the run cannot be trained or evaluated; `relay_core.errors` lists the kinds.
        """
        sites = [self.run.site(i) for i in ([self.only] if self.only else self.run.task_ids)]
        for settings in sites:
            settings.require_consistent()
        if len({s.mode for s in sites}) > 1:
            raise RunFileError("the sites of one run on one machine need the same strategy")
        if self.until == "solver" and len(sites) > 1:
            raise RunFileError(
                "--until solver leaves a site's generators untrained, which the next site needs: name one --site"
            )
        _check_processes(sites)
        images = self._load_images(sites)
        self._check_studies(images)
        if distributed.rank() == 0:
            self._write_run_file()
        rows = self._earlier_rows() if self.only else {}
        sequence = sites[0].facts.sequence
        if sequence == "at_once":
            rows["joint"] = self._train(_joint_settings(sites, images), Joined([images[s.name] for s in sites]), None)
        else:
            previous: Checkpoint | None = None
            for settings in sites:
                base = self._base(settings, previous)
                if base is None and sequence == "continues" and not rows and self.tests:
                    self._score_untrained(settings)
                rows[settings.name] = self._train(settings, images[settings.name], base)
                previous = checkpoint.find(self.out / settings.folder_name, lambda _: None)
                if settings is not sites[-1]:  # the heat maps are drawn once, at the end
                    self._write_matrices(rows, sequence == "continues", draw=False)
        self._last_scores = {} if sequence == "anew" else list(rows.values())[-1]
        return self._write_matrices(rows, sequence == "continues")

    def by_subject(self) -> dict[str, list[float]]:
        """Return the scores of each test set's subjects after the last training of a call, nameless, in the set's order.

        Of a segmentation a subject's Dice, of a classification whether it was right (1 or 0). Empty before a call, and where
        each site has a model of its own, none of which is the last.
        """
        return {
            test: [float(sample["dice" if "dice" in sample else "right"]) for sample in scores["samples"]]
            for test, scores in self._last_scores.items()
        }

    def _load_images(self, sites: list[SiteSettings]) -> dict[str, SiteData]:
        """Decode the training sets of `sites`, and every test set that this machine has; report all faults together."""
        train: dict[str, SiteData] = {}
        faults: list[DataError] = []
        trained_ids = {s.task_id for s in sites}
        for settings in (self.run.site(i) for i in self.run.all_ids):
            folder = settings.data_folder(self.data_root, self.run.base)
            if settings.task_id not in trained_ids and not folder.is_dir():
                continue
            for split in ("train", "test"):
                name, kwargs = settings.dataset.name, settings.data
                if split == "train" and settings.task_id not in trained_ids:
                    continue
                if split == "test" and not has_test(name, kwargs, folder):
                    continue
                try:
                    data = load_site(
                        name, kwargs, folder=folder, split=split, resolution=settings.resolution,
                        workers=settings.num_workers,
                    )  # fmt: skip
                    (train if split == "train" else self.tests)[settings.name] = data
                except DataError as error:
                    faults.append(error)
        if len(faults) == 1:
            raise faults[0]
        if faults:
            problems: list[Problem] = [problem for fault in faults for problem in fault.problems]
            heads = [str(fault).splitlines()[0] for fault in faults]
            raise DataError("\n".join(heads), problems)
        return train

    def _check_studies(self, train: dict[str, SiteData]) -> None:
        """Refuse a study that is at two sites: tested on at one and trained on at another, a model looks better than it is.

        Raises:
            DataError: studies are at more than one site.
        """
        owners: dict[str, str] = {}
        problems = []
        for settings in (self.run.site(i) for i in self.run.all_ids):
            if not isinstance(settings.data, SlicedKwargs) or settings.data.same_study_ids:
                continue
            for data in (sets[settings.name] for sets in (train, self.tests) if settings.name in sets):
                for study, original in zip(data.subjects, data.originals, strict=True):
                    owner = owners.setdefault(study, settings.name)
                    if owner != settings.name:
                        problems.append(Problem(original.image.name, f"of {settings.name}: its study is at {owner} too"))
        if problems:
            raise data_error(
                "studies are at more than one site; take them out, or, where sites number their studies alike, set "
                "dataset.kwargs.same_study_ids: true", problems,
            )  # fmt: skip

    def _base(self, settings: SiteSettings, previous: Checkpoint | None) -> Checkpoint | None:
        """Return the checkpoint that a site starts from: the one its settings name, else that of the site before it."""
        if settings.facts.sequence == "anew":
            return None
        if "load" not in settings.checkpoint.model_fields_set:
            before = self._site_before(settings) if self.only else None
            return previous if before is None else checkpoint.find(self.out / before.folder_name, self._warn(before))
        if settings.checkpoint.load is None:
            return None
        return checkpoint.find(self.out / settings.checkpoint.load, self._warn(settings))

    def _order(self) -> list[int]:
        return self.run.task_ids if self.only in self.run.task_ids else self.run.all_ids

    def _site_before(self, settings: SiteSettings) -> SiteSettings | None:
        """Return the settings of the site before this one in the run's order; None for the first."""
        place = self._order().index(settings.task_id)
        return self.run.site(self._order()[place - 1]) if place else None

    def _earlier_rows(self) -> dict[str, dict[str, Any]]:
        """Return the scores that this folder holds of the sites before, by site, but those on other test images."""
        rows = {}
        for settings in (self.run.site(i) for i in self._order()[: self._order().index(int(self.only or 0))]):
            saved = read_scores(self.out / settings.folder_name / SCORES)
            if saved.get("scores") and self.tests and distributed.rank() == 0:
                if scored_on(saved, self.tests):
                    rows[settings.name] = saved["scores"]
                else:
                    why = "on other test images" if "test_sets" in saved else "by an older version"
                    self._warn(settings)(f"its scores were made {why}, and are not in the matrices: evaluate it again")
        return rows

    def _train(self, settings: SiteSettings, images: Images, base: Checkpoint | None) -> dict[str, Any]:
        """Train one site, score its solver on every test set, draw pictures; return the scores by test site."""
        folder = self.out / settings.folder_name
        site = SiteTraining(
            settings, images, folder, self.device, self.run.digest, self.emit, self.stop, self.until, self.course,
            self._observe,
        )  # fmt: skip
        resume = self.resume or bool(settings.checkpoint.resume)
        last = train_site(site, base, resume)
        row: dict[str, Any] = {}
        if distributed.rank() == 0:
            row = self._scores(settings, last, folder)
        distributed.barrier()
        return row

    def _observe(self, site: SiteTraining, strategy: Strategy, step: int) -> None:
        """Score the site's own test set and draw sample grids during the training, as often as the site's settings say."""
        with self.course.paused() if self.course is not None else nullcontext():
            self._look(site, strategy, step)
        if self.course is not None and self.course.due(step):
            self.course.add(step, lambda: self._seen(site, strategy), self.device)

    def _look(self, site: SiteTraining, strategy: Strategy, step: int) -> None:
        train, name = site.fitting.train, site.name
        epochs, images_an_epoch = train.check_val_every_n_epoch, len(site.images) * site.settings.data.num_replica
        interval = max(1, round(epochs * images_an_epoch / train.batch_size)) if epochs else 0
        if interval and step % interval == 0 and name in self.tests:
            scores = evaluate(strategy.solver, self.tests[name], self.device)
            site.say(events.Scores(name, name, step, _matrix_scores(scores, site.settings.data.task)))
        every = train.sample_every_n_steps or (self.grids and -(-train.steps(images_an_epoch) // self.grids))
        if every and step % every == 0 and (generated := strategy.samples(SAMPLES)):
            rows = _rows(generated)
            rows.append(_real_row(site, rows[0][1].shape[-1]))
            path = site.folder / f"samples-{step:08d}.png"
            write_picture(rows, path, site.settings.data.num_classes)
            site.say(events.Samples(name, step, str(path)))

    def _scores(self, settings: SiteSettings, last: Checkpoint, folder: Path) -> dict[str, Any]:
        saved = read_scores(folder / SCORES)
        if saved.get("checkpoint") == last.digest and scored_on(saved, self.tests):
            return cast(dict[str, Any], saved["scores"])
        solver, _ = load_solver(last, self.device)
        row = {}
        for name, data in self.tests.items():
            row[name] = evaluate(solver, data, self.device)
            self.emit(events.Scores(settings.name, name, int(last.meta["step"]), _matrix_scores(row[name], data.task)))
        classes = settings.data.num_classes
        step = int(last.meta["step"])
        rows = prediction_rows(solver, self.tests, self.device)
        for name, picture in (("predictions", rows), ("samples", generated_rows(settings, last, self.device))):
            if picture:
                write_picture(picture, folder / f"{name}.png", classes)
                self.emit(events.Samples(settings.name, step, str(folder / f"{name}.png")))
        write_scores(folder / SCORES, last.digest, self.tests, row)
        return row

    def _seen(self, site: SiteTraining, strategy: Strategy) -> dict[str, float | None]:
        """Return the main score on the test sets of the sites that a solver in training has learned from, by site."""
        sequence, order = site.settings.facts.sequence, [self.run.site(i).name for i in self.run.task_ids]
        learned = {"anew": [site.name], "at_once": order}.get(sequence) or order[: order.index(site.name) + 1]
        metric = metrics_of(site.settings.data.task)[0].name
        tests = {name: self.tests[name] for name in learned if name in self.tests}
        return {name: evaluate(strategy.solver, data, self.device)[metric] for name, data in tests.items()}

    def _score_untrained(self, settings: SiteSettings) -> None:
        """Write the scores of the untrained solver, which forward transfer is measured against."""
        path = self.out / UNTRAINED
        if distributed.rank() != 0 or scored_on(read_scores(path), self.tests):
            return
        torch.manual_seed(settings.random_seed)
        solver = make_strategy(settings, self.device).solver
        row = {name: evaluate(solver, data, self.device) for name, data in self.tests.items()}
        write_scores(path, None, self.tests, {n: _matrix_scores(r, settings.data.task) for n, r in row.items()})

    def _write_run_file(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out / "run.yaml", yaml.safe_dump(self.run.resolved(), sort_keys=False).encode())

    def _write_matrices(
        self, rows: dict[str, dict[str, Any]], sequential: bool, draw: bool = True
    ) -> dict[str, ScoreMatrix]:
        if distributed.rank() != 0 or not self.tests:
            return {}
        untrained = read_scores(self.out / UNTRAINED)
        start = untrained["scores"] if sequential and scored_on(untrained, self.tests) else None
        return write_matrices(rows, list(self.tests), self.out / "evaluation", start, sequential, draw=draw)

    def _warn(self, settings: SiteSettings) -> Any:
        return lambda message: self.emit(events.Warned(settings.name, message))


def _matrix_scores(scores: dict[str, Any], task: Task) -> dict[str, Any]:
    """Return those scores of a test set that matrices are made of, without intervals and single samples."""
    return {metric.name: scores[metric.name] for metric in metrics_of(task)}


def _real_row(site: SiteTraining, side: int) -> tuple[str, Tensor, Tensor, None]:
    """Return a row of the site's own training images, at the generators' size, to hold generated ones against."""
    count, data = len(site.images), site.settings.data
    images, labels = site.images.batch(torch.linspace(0, count - 1, min(SAMPLES, count)).long())
    low, high = data.out_range
    signed = resize_images((images - low) * (2 / (high - low)) - 1, side)
    if labels.ndim > 1:
        labels = resize_labels(scored_as(data.num_classes, data.groups, ())[labels], side, data.num_classes)
    return f"{site.name}: training images", signed, labels, None


def _check_processes(sites: list[SiteSettings]) -> None:
    """Refuse a batch size that cannot be split evenly over the processes, with two images or more for each.

    Raises:
        RunFileError: the batch size of a site does not fit, or it trains privately.
    """
    world = distributed.world()
    for settings in sites:
        if world > 1 and settings.train.privacy is not None:
            raise RunFileError("train.privacy: one process alone trains privately: leave torchrun out")
        sizes = {"train.batch_size": settings.train.batch_size}
        if isinstance(settings.model.kwargs, DoubleGanKwargs) and settings.model.kwargs.gan_batch_size is not None:
            sizes["model.kwargs.gan_batch_size"] = settings.model.kwargs.gan_batch_size
        for key, batch in sizes.items():
            if world > 1 and (batch % world or batch < 2 * world):
                raise RunFileError(f"{key} {batch} must be a multiple of the {world} processes, and at least {2 * world}")


def _joint_settings(sites: list[SiteSettings], images: dict[str, SiteData]) -> SiteSettings:
    """Return the first site's settings with the training budget of all sites together."""
    first = sites[0]
    passes = [(s.train, len(images[s.name]) * s.data.num_replica) for s in sites]
    steps, solver_steps = (sum(getattr(train, what)(count) for train, count in passes) for what in ("steps", "solver_steps"))
    budget: dict[str, Any] = {"num_mimgs": steps * first.train.batch_size / 1e6, "num_epochs": None}
    of_solver = solver_steps * first.train.batch_size / 1e6 if solver_steps < steps else None
    budget |= {"solver_num_mimgs": of_solver, "solver_num_epochs": None}
    kwargs = first.data.model_copy(update={"task_name": "joint"})
    return first.model_copy(
        update={
            "train": first.train.model_copy(update=budget),
            "dataset": first.dataset.model_copy(update={"kwargs": kwargs}),
            "checkpoint": first.checkpoint.model_copy(
                update={"save": first.checkpoint.save.model_copy(update={"dir": "joint"})}
            ),
        }
    )


def generated_rows(settings: SiteSettings, last: Checkpoint, device: torch.device, per_site: int = SAMPLES) -> list[Any]:
    """Return a row (site, images, labels, None) of generated images for each site that a checkpoint knows.

    The list is empty where the checkpoint has no generators.
    """
    if not settings.facts.has_generators:
        return []
    strategy = make_strategy(settings.without_pretraining(), device)
    checkpoint.load_handed_over(strategy, last)
    return _rows(strategy.samples(per_site))


def _rows(samples: dict[str, tuple[Tensor, Tensor]]) -> list[Any]:
    """Return generated images and labels by site as rows for `write_picture`."""
    return [(name, images.cpu(), labels.cpu(), None) for name, (images, labels) in samples.items()]
