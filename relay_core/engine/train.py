"""Training at one site: the training loop, its checkpoints, and how it ends or stops."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from relay_core import distributed, events
from relay_core.config import DoubleGanKwargs, SiteSettings
from relay_core.engine import changed_images, checkpoint
from relay_core.engine.checkpoint import Checkpoint
from relay_core.engine.course import Course
from relay_core.engine.device import keep_freed_memory
from relay_core.engine.origin import origin
from relay_core.engine.saving import Progress, Saver
from relay_core.engine.stream import Feed, Joined, PrivateStream, Stream, TurnsStream, decoders
from relay_core.errors import CheckpointError, RunFileError, Stopped
from relay_core.events import Emit, Stop
from relay_core.strategies import Images, Position, Privacy, Strategy, make_strategy


@dataclass
class SiteTraining:
    """One training at one site: its settings, images, folder and device, and where its events go."""

    settings: SiteSettings
    images: Images
    folder: Path
    device: torch.device
    run_digest: str
    emit: Emit = events.ignore
    stop: Stop = events.never
    until: Literal["end", "solver"] = "end"
    """`solver` ends where the solver has had its budget; a game that has one of its own is resumed later."""
    course: Course | None = None
    """Keeps what the training costs along its way."""
    observe: Callable[[SiteTraining, Strategy, int], None] = lambda site, strategy, step: None
    """Called after every step, in the first process alone; it must leave the random state alone."""
    halvings: int = 0
    """How often the batch was halved, since it did not fit into the memory; as many more are added up to one step."""

    @property
    def name(self) -> str:
        """The site's name."""
        return self.settings.name

    @property
    def fitting(self) -> SiteSettings:
        """Return the settings with the batch that fits, and as many more batches a step of the optimizers."""
        return self.settings.with_smaller_batch(self.halvings)

    def say(self, event: events.Event) -> None:
        """Emit an event, from the first process only."""
        if distributed.rank() == 0:
            self.emit(event)

    def warn(self, message: str) -> None:
        """Emit a warning, from the first process only."""
        self.say(events.Warned(self.name, message))


def train_site(site: SiteTraining, base: Checkpoint | None, resume: bool) -> Checkpoint:
    """Train a site to the end of its budget, or of the solver's, from `base` or anew; return its last checkpoint.

    Args:
        site: settings, images, and where to write.
        base: the checkpoint that the site before handed over; None starts anew.
        resume: go on from this site's own newest checkpoint, if there is one.

    A batch that does not fit into the memory is halved, and the training goes on from its newest checkpoint; gradients are
    added up, so that the optimizers step as before. (Not privately, and not with several processes, of which one
    alone would know.)

    Raises:
        CheckpointError: the folder holds a training and `resume` is off, or a checkpoint does not fit.
        Stopped: the training was asked to stop; a checkpoint was written.
        TrainingDiverged: losses or gradients stayed non-finite.
        RunFileError: the budget's parts do not fit what is asked for.
        RuntimeError: the batch does not fit into the memory and cannot be halved (`torch.OutOfMemoryError` on a GPU).
    """
    if site.device.type == "cpu":
        keep_freed_memory()
    while True:
        try:
            return _train_site(site, base, resume)
        except _TooLarge as error:
            batch = site.fitting.train.batch_size
            if distributed.world() > 1 or batch % 2 or batch < 4 or site.settings.train.privacy is not None:
                raise error.lack from None
            lack = " ".join(str(error.lack).split())[:200]
        # only here, where the error holds the batch's tensors no more
        site.halvings, resume = site.halvings + 1, True
        gc.collect()
        if site.device.type == "cuda":
            torch.cuda.empty_cache()
        added = site.fitting.train.accumulate_grad_batches
        site.warn(
            f"a batch of {batch} does not fit into the memory of {site.device} ({lack}): going on with {batch // 2}, and "
            f"{added} of them added up; train.batch_size {batch // 2} and accumulate_grad_batches {added} begin so"
        )


class _TooLarge(Exception):
    """A step's batch does not fit into the memory."""

    def __init__(self, lack: RuntimeError) -> None:
        super().__init__()
        self.lack = lack
        """What the allocator says."""


_LACKS = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
"""What allocators say: torch's and CUDA's, those of cuBLAS and cuDNN, the CPU's."""


def _take(strategy: Strategy, images: Tensor, labels: Tensor, position: Position) -> dict[str, Tensor]:
    try:
        return strategy.step(images, labels, position)
    except RuntimeError as error:
        if any(words in str(error) for words in _LACKS):
            raise _TooLarge(error) from None
        raise


def _train_site(site: SiteTraining, base: Checkpoint | None, resume: bool) -> Checkpoint:
    """Train with the batch that is thought to fit; see `train_site`."""
    own_checkpoint = checkpoint.newest(site.folder, site.warn) if site.folder.is_dir() else None
    if own_checkpoint is not None:
        _check_own(site, base, own_checkpoint, resume)
    distributed.barrier()  # no process may write before all have read the folder
    halved = int(own_checkpoint.meta.get("halvings", 0)) if own_checkpoint else 0
    site.halvings = max(site.halvings, halved)
    settings = site.settings
    images_a_pass = len(site.images) * settings.data.num_replica
    steps = settings.train.steps(images_a_pass) << site.halvings
    solver_steps = settings.train.solver_steps(images_a_pass) << site.halvings
    first_step = int(own_checkpoint.meta["step"]) << (site.halvings - halved) if own_checkpoint else 0
    _check_parts(site, steps, solver_steps)
    if own_checkpoint is not None and first_step >= steps and own_checkpoint.meta.get("ended", True):
        if distributed.rank() == 0:
            checkpoint.tidy(site.folder)  # in case it was killed between its last checkpoint and its end
        return own_checkpoint
    if own_checkpoint is not None and site.until == "solver" and solver_steps <= first_step < steps:
        return own_checkpoint
    changed_images.check(site.images, settings.checkpoint, own_checkpoint, site.warn)
    strategy, stream = _begin(site, base, own_checkpoint, solver_steps)
    for updater in strategy.updaters.values():
        updater.pending <<= site.halvings - halved
    if own_checkpoint is not None and strategy.ends and own_checkpoint.meta.get("ended"):
        raise CheckpointError(
            f"{own_checkpoint.path}: {site.name} has ended after {first_step} steps, and strategy {strategy.name} has "
            "taken from it what later sites need; a larger budget needs another --out"
        )
    saver = Saver(site, strategy, stream, steps, solver_steps, origin(site, base, own_checkpoint))
    end = solver_steps if site.until == "solver" else steps
    site.say(events.Started(site.name, first_step, end, len(site.images), str(site.device), strategy.name))

    if first_step >= steps:  # the budget was made smaller after this checkpoint
        strategy.end_site(site.images)
        return saver.save(first_step)
    workers = 0 if strategy.privacy is not None else decoders(settings.num_workers)  # nobody knows ahead who is drawn
    feed = Feed(site.images, stream, site.device, workers, site.fitting.train.batch_size)
    try:
        return _train(site, strategy, feed, saver, range(first_step, steps))
    finally:
        feed.close()


def _check_parts(site: SiteTraining, steps: int, solver_steps: int) -> None:
    """Refuse what the parts of a budget, or a batch that was halved, do not allow.

    Raises:
        RunFileError: the game or the solver would have no part of its own.
        CheckpointError: the batch was halved so often that these processes cannot share it.
    """
    kwargs, train = site.settings.model.kwargs, site.fitting.train
    if isinstance(kwargs, DoubleGanKwargs) and site.settings.facts.has_generators:
        if kwargs.gan_after_solver and solver_steps >= steps:
            raise RunFileError(
                f"{site.name}: model.kwargs.gan_after_solver: the solver's budget is the whole ({steps} steps), and leaves "
                "none for the game; set train.solver_num_mimgs (or solver_num_epochs) to less"
            )
        if site.until == "solver" and solver_steps < steps and kwargs.num_stages > 1:
            raise RunFileError(
                f"{site.name}: --until solver: the solver is merged where a stage ends, so it needs num_stages: 1, not "
                f"{kwargs.num_stages}"
            )
    world = distributed.world()
    if site.halvings and world > 1 and (train.batch_size % world or train.batch_size < 2 * world):
        raise CheckpointError(
            f"{site.folder}: the batch was halved to {train.batch_size}, as no more fitted into the memory, and {world} "
            "processes cannot share that; go on with fewer"
        )


def _train(site: SiteTraining, strategy: Strategy, feed: Feed, saver: Saver, remaining: range) -> Checkpoint:
    """Take the remaining steps, with a checkpoint every so often and where the solver is ready; return the last one.

    Raises Stopped.
    """
    steps = remaining.stop
    progress = Progress(site, strategy, remaining.start, saver.solver_steps if site.until == "solver" else steps)
    for step in remaining:
        position = Position(step, steps, saver.solver_steps)
        with _watched(site, position, strategy.work(position)):
            count = strategy.real_count(position)
            with nullcontext() if strategy.privacy is None else strategy.privacy.step(step, count):
                losses = _take(strategy, *feed.take(count), position)
        progress.add(step + 1, losses)
        if step + 1 == steps:  # the checkpoint of the last step is made after the site has ended
            with _watched(site, position, "end"):
                strategy.end_site(site.images)
        if distributed.rank() == 0:
            site.observe(site, strategy, step + 1)
        if _stop_wanted(site):
            saver.save(step + 1)
            raise Stopped(f"stopped at step {step + 1} of {steps}; --resume goes on from there")
        ready = step + 1 == saver.solver_steps < steps
        if ready and site.until == "solver":
            break
        if ready or saver.due():
            saver.save(step + 1)

    last = saver.save(step + 1)
    site.say(events.Finished(site.name, step + 1, round(progress.seconds, 3)))
    return last


def _watched(site: SiteTraining, position: Position, work: Hashable) -> AbstractContextManager[None]:
    if site.course is None:
        return nullcontext()
    return site.course.watch(site.name, position.step, position.steps, (site.halvings, work))


def _check_own(site: SiteTraining, base: Checkpoint | None, own_checkpoint: Checkpoint, resume: bool) -> None:
    """Refuse to go on unless `resume` is on and the checkpoint in the site's folder is one of this training.

    Raises:
        CheckpointError: `resume` is off, or the checkpoint is of another site or strategy.
    """
    if not resume:
        raise CheckpointError(
            f"{site.folder} already holds a training of {own_checkpoint.meta['site']}; add --resume, or choose another --out"
        )
    for key, expected in (("site", site.name), ("strategy", site.settings.strategy.name)):
        if own_checkpoint.meta[key] != expected:
            raise CheckpointError(
                f"{own_checkpoint.path} is of {key} {own_checkpoint.meta[key]}, not {expected}; choose another --out"
            )
    if ("privacy" in own_checkpoint.meta) != (site.settings.train.privacy is not None):
        raise CheckpointError(
            f"{own_checkpoint.path}: this training began {'with' if 'privacy' in own_checkpoint.meta else 'without'} "
            "train.privacy, and cannot change that: choose another --out"
        )
    if own_checkpoint.meta["run"] != site.run_digest:
        site.warn("the run file has changed since this training began; what is trained already is kept")
    began_from = own_checkpoint.meta.get("base")
    if base is not None and began_from is not None and began_from["checkpoint"] != base.digest:
        site.warn(
            f"this training began from another checkpoint than {base.path.name} of {base.meta['site']}, and goes on so"
        )


def _begin(
    site: SiteTraining, base: Checkpoint | None, own_checkpoint: Checkpoint | None, solver_steps: int
) -> tuple[Strategy, Stream]:
    """Return the strategy and its image stream, as the site's own checkpoint left them or at the start of the site."""
    settings = site.fitting if base is None and own_checkpoint is None else site.fitting.without_pretraining()
    torch.manual_seed(settings.random_seed)
    strategy = make_strategy(settings, site.device)
    if settings.train.sync_batchnorm and distributed.world() > 1:
        if site.device.type == "cuda":  # the solver alone: torch cannot differentiate a synced norm twice
            nn.SyncBatchNorm.convert_sync_batchnorm(strategy.solver)
        else:
            site.warn("sync_batchnorm needs GPUs; every process uses its own batch statistics")
    if strategy.privacy is not None:
        _enter_privately(site, strategy.privacy)
    stream = _stream(site.images, settings, strategy, solver_steps)
    if own_checkpoint is not None:
        checkpoint.restore(strategy, own_checkpoint, site.device)
        stream.consumed = int(own_checkpoint.meta["consumed"])
        return strategy, stream
    if base is not None:
        _take_over(site, strategy, base)
    torch.manual_seed(
        settings.random_seed * 1_000_003 + settings.task_id if strategy.privacy is None else strategy.privacy.seed
    )
    strategy.begin_site(site.name, len(site.images), _class_counts(site))
    return strategy, stream


def _enter_privately(site: SiteTraining, privacy: Privacy) -> None:
    names = getattr(site.images, "names", [str(number) for number in range(len(site.images))])
    privacy.enter(getattr(site.images, "subjects", names), names)
    if privacy.settings.delta * len(privacy.units) >= 1:
        site.warn(
            f"train.privacy.delta {privacy.settings.delta:g} is not below 1 / {len(privacy.units)} {privacy.unit}s: a "
            "training that hands over one of them would meet it"
        )


def _stream(images: Images, settings: SiteSettings, strategy: Strategy, solver_steps: int) -> Stream:
    seed, replicas = settings.random_seed + settings.task_id, settings.data.num_replica
    sizes = [len(part) for part in images.parts] if isinstance(images, Joined) else [len(images)]
    if strategy.privacy is not None:
        return PrivateStream(len(images), strategy.privacy)
    owners = strategy.schedule(sizes, solver_steps)
    if owners is None:
        return Stream(len(images), seed, replicas)
    return TurnsStream(sizes, owners, settings.train.batch_size, seed, replicas)


def _class_counts(site: SiteTraining) -> list[int] | None:
    """Return the number of training images of each class; None for segmentation."""
    data = site.settings.data
    if data.task != "classification":
        return None
    labels = torch.cat([site.images.batch(part)[1] for part in torch.arange(len(site.images)).split(64)])
    return torch.bincount(labels, minlength=data.num_classes).tolist()


def _take_over(site: SiteTraining, strategy: Strategy, base: Checkpoint) -> None:
    """Load what the site before handed over, so that the strategy starts from it.

    Raises:
        CheckpointError: the training of the site before is not finished, or its networks do not fit.
    """
    done, budget = int(base.meta["step"]), int(base.meta["steps"])
    if done < budget:
        raise CheckpointError(
            f"{base.path}: the training of {base.meta['site']} is not finished (step {done} of {budget}); "
            "finish it with --resume before the next site begins"
        )
    same_strategy = base.meta["strategy"] == strategy.name
    strategy.load_handed_over(base.meta["state"] if same_strategy else {})
    if lost := [name for name in strategy.not_replayed() if name != site.name]:
        site.warn(
            f"the generators of {base.path.name} have not learned {', '.join(lost)}, the last of its run file's sites, or "
            "trained without them: nothing of it is replayed, and it may be forgotten. To go on after it, train there with "
            "model.kwargs.gan_at_last_site: true"
        )
    missing = strategy.missing_from(base.networks) if same_strategy else []
    names = [name for name in strategy.hand_over() if name not in missing] if same_strategy else ["solver"]
    checkpoint.load_networks(strategy, base, names)
    strategy.received(names)
    if not same_strategy:
        site.warn(f"{base.path} is of strategy {base.meta['strategy']}: only its solver is taken over")
    for name in (name for name in missing if name.endswith("_ema")):
        strategy.networks[name].load_state_dict(base.network(name.removesuffix("_ema")))


def _stop_wanted(site: SiteTraining) -> bool:
    """Return whether any process was asked to stop: all processes leave at the same step."""
    stop_here = site.stop()
    if distributed.world() == 1:
        return stop_here
    return float(distributed.mean_(torch.tensor(float(stop_here), device=site.device))) > 0
