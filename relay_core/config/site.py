"""Everything that one site's training needs, merged from the run file."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, cast

from pydantic import Field

from relay_core.config.base import Settings
from relay_core.config.datasets import CommonDatasetKwargs, DatasetSettings
from relay_core.config.model import DoubleGanKwargs, ModelSettings
from relay_core.config.solvers import PretrainedKwargs, SolverKwargs, SolverSettings
from relay_core.config.strategies import BaselineKwargs, StrategyFacts, StrategySettings, strategy_facts
from relay_core.config.train import OptimizerSettings, TrainSettings
from relay_core.errors import RunFileError

LATER = {
    "dataset.kwargs.class_names": None,
    "dataset.kwargs.task": "segmentation",
    "train.loss.kwargs.per_sample": False,
    "model.kwargs.D_img_kwargs.mapping_kwargs": {"num_layers": 8},
    "model.kwargs.D_label_kwargs.mapping_kwargs": {"num_layers": 8},
}
"""Settings that came after 0.1: where they are left alone, a run keeps the identity that it had before."""


class SaveSettings(Settings):
    """Where checkpoints go."""

    dir: str | None = None
    """Folder below the output folder; none: task_<id>."""


class CheckpointSettings(Settings):
    """What a site starts from and where it writes."""

    load: str | None = None
    """Checkpoint (file, or folder of a site) of the site before, below the output folder; null starts anew. Left out:
    the site before in the run's order."""
    resume: bool | str | None = None
    """Go on from this site's own newest checkpoint."""
    save: SaveSettings = SaveSettings()
    """Where this site's checkpoints go."""


class SiteSettings(Settings):
    """One site's settings: `common`, overridden by its data set entry, overridden by its `task_confs`."""

    random_seed: int = Field(default=0, ge=0)
    """Seed of everything random."""
    num_workers: int = Field(default=0, ge=0)
    """Threads that decode images of a set too large for memory."""
    root_path: str | dict[str, str] | None = None
    """Folder that the data sets lie in, or one for each platform."""
    dataset: DatasetSettings
    """The site's images."""
    strategy: StrategySettings
    """How the site learns."""
    model: ModelSettings
    """The networks."""
    train: TrainSettings
    """Budget and conditions."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """Start and end."""

    def require_consistent(self) -> None:
        """Check what single settings cannot: that they fit each other.

        Raises:
            RunFileError: they do not; the message names the keys.
        """
        if self.facts.has_generators and self.model.name != "doublegan":
            raise RunFileError(f"strategy {self.strategy.name} needs model doublegan, not {self.model.name!r}")
        if isinstance(self.model.kwargs, DoubleGanKwargs) and self.model.kwargs.task != self.data.task:
            raise RunFileError(f"model.kwargs.task is {self.model.kwargs.task}, dataset.kwargs.task is {self.data.task}")
        if self.data.task not in self.solver.kwargs.tasks:
            raise RunFileError(f"the network {self.solver.name!r} is for {' and '.join(self.solver.kwargs.tasks)}, "
                               f"and dataset.kwargs.task is {self.data.task}")  # fmt: skip
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Channels, classes and sizes that data set, networks and loss must agree on."""
        wanted = (self.solver.kwargs.in_channels, self.solver.kwargs.num_classes)
        found = (self.data.img_channels, self.data.num_classes)
        if wanted != found:
            raise RunFileError(
                f"the model expects {wanted[0]} channels and {wanted[1]} classes, "
                f"dataset.kwargs say img_channels {found[0]} and num_classes {found[1]}"
            )
        weight = getattr(self.train.loss.kwargs, "weight", None)
        if weight is not None and len(weight) != found[1]:
            raise RunFileError(
                f"train.loss.kwargs.weight has {len(weight)} numbers, one for each of {found[1]} classes is needed"
            )
        side = self.model.kwargs.img_resolution if isinstance(self.model.kwargs, DoubleGanKwargs) else self.resolution
        if self.facts.has_generators and self.resolution != side:
            raise RunFileError(f"dataset.kwargs.img_size is {self.resolution}, the generators draw {side} (img_resolution)")

    def shared(self) -> dict[str, Any]:
        """Plain settings that all sites of a relay agree on: no paths, no machine's own."""
        plain = self.model_dump(mode="json", exclude={"num_workers", "root_path", "checkpoint"})
        for key in ("img_folder", "root_path"):
            plain["dataset"]["kwargs"].pop(key, None)
        for path, default in LATER.items():
            *holders, key = path.split(".")
            part = plain
            for holder in holders:
                part = part.get(holder, {})
            if key in part and part[key] == default:
                del part[key]
        return plain

    def without_pretraining(self) -> SiteSettings:
        """The same for networks whose weights come from a checkpoint: no file of pretrained weights is needed."""
        plain = {"pretrain": False, "pretrain_file": None}
        kwargs = self.model.kwargs
        if isinstance(kwargs, DoubleGanKwargs):
            if isinstance(kwargs.solver_kwargs, PretrainedKwargs):
                kwargs = kwargs.model_copy(update={"solver_kwargs": kwargs.solver_kwargs.model_copy(update=plain)})
        elif isinstance(kwargs, PretrainedKwargs):
            kwargs = kwargs.model_copy(update=plain)
        return self.model_copy(update={"model": self.model.model_copy(update={"kwargs": kwargs})})

    @property
    def data(self) -> CommonDatasetKwargs:
        """Settings of the data set."""
        return self.dataset.kwargs

    @property
    def name(self) -> str:
        """The site's name."""
        return self.data.task_name or f"site_{self.data.task_id}"

    @property
    def task_id(self) -> int:
        """The site's number."""
        return self.data.task_id or 1

    @property
    def solver(self) -> SolverSettings:
        """The solver, alone or within doublegan."""
        kwargs = self.model.kwargs
        if isinstance(kwargs, DoubleGanKwargs):
            return SolverSettings(name=kwargs.solver_name, kwargs=kwargs.solver_kwargs)
        return SolverSettings(name=self.model.name, kwargs=cast(SolverKwargs, kwargs))

    @property
    def solver_optimizer(self) -> OptimizerSettings:
        """Optimizer of the solver."""
        own = self.model.kwargs.optimizer_conf.M if isinstance(self.model.kwargs, DoubleGanKwargs) else None
        return own or self.train.optimizer

    @property
    def resolution(self) -> int:
        """Side of the images that the networks see, in pixels."""
        if self.data.img_size is not None:
            return self.data.img_size
        return self.model.kwargs.img_resolution if isinstance(self.model.kwargs, DoubleGanKwargs) else 64

    @property
    def mode(self) -> str:
        """The strategy's name; of the baseline its kind: local, sequential or joint."""
        kwargs = self.strategy.kwargs
        if not isinstance(kwargs, BaselineKwargs):
            return self.strategy.name
        return kwargs.mode or ("joint" if self.train.joint_training else "sequential")

    @property
    def facts(self) -> StrategyFacts:
        """What the strategy states of itself. Raises RunFileError where it states nothing."""
        return strategy_facts(self.mode)

    @property
    def folder_name(self) -> str:
        """Folder of this site below the output folder."""
        return self.checkpoint.save.dir or f"task_{self.task_id}"

    def data_folder(self, data_root: Path | None, base: Path) -> Path:
        """The site's image folder: `img_folder` below `data_root`, else below `root_path`, else below `base`.

        Raises:
            RunFileError: no `img_folder`, or no root for this platform.
        """
        if self.data.img_folder is None:
            raise RunFileError(f"site {self.name}: dataset.kwargs.img_folder is missing")
        root = self.data.root_path or self.root_path
        if isinstance(root, dict):
            if platform.system() not in root and data_root is None:
                raise RunFileError(f"root_path names no folder for {platform.system()}; it has {', '.join(root)}")
            root = root.get(platform.system(), "")
        return (data_root if data_root is not None else base / (root or "")) / self.data.img_folder
