"""Define the settings of one site: everything that its training needs, merged from the run file."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, PrivateAttr

from relay_core.config.base import Settings
from relay_core.config.datasets import CommonDatasetKwargs, DatasetSettings
from relay_core.config.model import DoubleGanKwargs, ModelSettings
from relay_core.config.privacy import require_private
from relay_core.config.solvers import PretrainedKwargs, SolverKwargs, SolverSettings
from relay_core.config.strategies import BaselineKwargs, StrategyFacts, StrategySettings, facts_of, strategy_facts
from relay_core.config.train import OptimizerSettings, TrainSettings
from relay_core.errors import RunFileError

LATER: dict[str, Any] = {
    "dataset.kwargs.class_names": None,
    "dataset.kwargs.task": "segmentation",
    "dataset.kwargs.fit": "stretch",
    "train.solver_num_epochs": None,
    "train.privacy": None,
    "train.loss.kwargs.per_sample": False,
    "train.loss.kwargs.dice": None,
    "dataset.kwargs.test_count": None,
    "dataset.kwargs.class_column": "class",
    "dataset.kwargs.ignore_classes": [],
    "dataset.kwargs.class_groups": [],
    "model.kwargs.D_img_kwargs.mapping_kwargs": {"num_layers": 8},
    "model.kwargs.D_label_kwargs.mapping_kwargs": {"num_layers": 8},
    "model.kwargs.gan_every": None,
    "model.kwargs.gan_num_mimgs": None,
    "model.kwargs.gan_batch_size": None,
    "model.kwargs.gan_at_last_site": None,
    "model.kwargs.gan_after_solver": False,
    "model.kwargs.label_head": "value",
    "model.kwargs.solver_resolution": None,
    "model.kwargs.label_resolution": None,
    "model.kwargs.reduced_share": 0.25,
    "model.kwargs.recoloured_share": 0,
    "model.kwargs.deep_supervision": False,
    "model.kwargs.solver_kwargs.deep_supervision": False,
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
    on_changed_images: Literal["warn", "error"] = "warn"
    """What happens where the training images are not those that a training began with, or that `images_digest` names."""
    images_digest: str | None = None
    """Digest that the training images are expected to have, as `relay preflight --json` gives it under `digests.train`."""
    save: SaveSettings = SaveSettings()
    """Where this site's checkpoints go."""


class SiteSettings(Settings):
    """One site's settings: `common`, overridden by its data set entry, overridden by its `task_confs`."""

    random_seed: int = Field(default=0, ge=0)
    """Seed of everything random."""
    num_workers: int = Field(default=0, ge=0)
    """Processes that decode images of a set too large for memory ahead of need; 0: 8. At most one for each core
    beyond two: with two cores, the training's own threads decode when a batch is due."""
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

    _last: bool = PrivateAttr(default=False)

    @property
    def last(self) -> bool:
        """Whether the run file's relay ends at this site."""
        return self._last

    def require_consistent(self) -> None:
        """Check that the settings fit each other, which no single setting can check.

        Raises:
            RunFileError: they do not fit; the message names the keys.
        """
        if self.facts.has_generators and self.model.name != "doublegan":
            raise RunFileError(f"strategy {self.strategy.name} needs model doublegan, not {self.model.name!r}")
        if isinstance(self.model.kwargs, DoubleGanKwargs) and self.model.kwargs.task != self.data.task:
            raise RunFileError(f"model.kwargs.task is {self.model.kwargs.task}, dataset.kwargs.task is {self.data.task}")
        if self.data.task not in self.solver.kwargs.tasks:
            raise RunFileError(f"the network {self.solver.name!r} is for {' and '.join(self.solver.kwargs.tasks)}, "
                               f"and dataset.kwargs.task is {self.data.task}")  # fmt: skip
        if self.deep_supervision and self.data.task != "segmentation":
            raise RunFileError(
                "deep_supervision: learns label maps at several sizes, and a classification has none: leave it out"
            )
        if isinstance(self.model.kwargs, DoubleGanKwargs) and self.model.kwargs.gan_after_solver:
            self._check_solver_first(self.model.kwargs)
        if self.data.groups and self.train.loss.name == "bce":
            raise RunFileError(
                "train.loss bce asks of each class alone, dataset.kwargs.class_groups of several together: take another loss"
            )
        self._check_sizes()
        if self.train.privacy is not None:
            require_private(self)

    def _check_solver_first(self, kwargs: DoubleGanKwargs) -> None:
        """Check that a game after the solver has a budget of its own. Raises RunFileError."""
        if self.train.solver_num_mimgs is None and self.train.solver_num_epochs is None:
            raise RunFileError(
                "model.kwargs.gan_after_solver: the game is played in what train.num_mimgs (or num_epochs) leaves after the "
                "solver's budget; set train.solver_num_mimgs (or solver_num_epochs) to less than the whole"
            )
        for key in ("gan_every", "gan_num_mimgs"):
            if getattr(kwargs, key) is not None:
                raise RunFileError(
                    f"model.kwargs.gan_after_solver: the game has every step after the solver's: leave {key} out"
                )
        if kwargs.num_stages > 1:
            raise RunFileError(
                "model.kwargs.gan_after_solver: all networks are merged where a stage ends, so it needs num_stages: 1, not "
                f"{kwargs.num_stages}"
            )

    def _check_sizes(self) -> None:
        """Check that data set, networks and loss agree on channels, classes and image sizes. Raises RunFileError."""
        model_shape = (self.solver.kwargs.in_channels, self.solver.kwargs.num_classes)
        data_shape = (self.data.img_channels, self.data.num_classes)
        if model_shape != data_shape:
            raise RunFileError(
                f"the model expects {model_shape[0]} channels and {model_shape[1]} classes, "
                f"dataset.kwargs say img_channels {data_shape[0]} and num_classes {data_shape[1]}"
            )
        weight = getattr(self.train.loss.kwargs, "weight", None)
        if weight is not None and len(weight) != data_shape[1]:
            raise RunFileError(
                f"train.loss.kwargs.weight has {len(weight)} numbers, one for each of {data_shape[1]} classes is needed"
            )
        solver = self.solver.kwargs
        if getattr(solver, "norm", None) == "instance" and self.resolution <= solver.reduction:
            raise RunFileError(
                f"norm: instance needs feature maps of more than one pixel, and at {self.resolution} pixels the deepest of "
                f"{self.solver.name} are 1 x 1: take norm group, or at least {2 * solver.reduction} pixels"
            )
        side = self.model.kwargs.solver_side if isinstance(self.model.kwargs, DoubleGanKwargs) else self.resolution
        if self.facts.has_generators and self.resolution != side:
            raise RunFileError(
                f"dataset.kwargs.img_size is {self.resolution}, the solver learns at {side} "
                "(model.kwargs.solver_resolution, or img_resolution where that is left out): leave img_size out"
            )

    def shared(self) -> dict[str, Any]:
        """Return the plain settings that all sites of a relay agree on, without paths and settings of one machine."""
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
        """Return the settings without `pretrain` and its file, for networks whose weights come from a checkpoint."""
        no_pretraining = {"pretrain": False, "pretrain_file": None}
        kwargs = self.model.kwargs
        if isinstance(kwargs, DoubleGanKwargs):
            if isinstance(kwargs.solver_kwargs, PretrainedKwargs):
                kwargs = kwargs.model_copy(update={"solver_kwargs": kwargs.solver_kwargs.model_copy(update=no_pretraining)})
        elif isinstance(kwargs, PretrainedKwargs):
            kwargs = kwargs.model_copy(update=no_pretraining)
        return self.model_copy(update={"model": self.model.model_copy(update={"kwargs": kwargs})})

    def with_smaller_batch(self, halvings: int) -> SiteSettings:
        """Return the settings with the batch, and the game's, halved so often, and as many more added up to a step."""
        if not halvings:
            return self
        train, kwargs = self.train, self.model.kwargs
        smaller: dict[str, Any] = {
            "train": train.model_copy(
                update={
                    "batch_size": train.batch_size >> halvings,
                    "accumulate_grad_batches": train.accumulate_grad_batches << halvings,
                }
            )
        }
        if isinstance(kwargs, DoubleGanKwargs) and kwargs.gan_batch_size is not None:
            kwargs = kwargs.model_copy(update={"gan_batch_size": max(2, kwargs.gan_batch_size >> halvings)})
            smaller["model"] = self.model.model_copy(update={"kwargs": kwargs})
        return self.model_copy(update=smaller)

    @property
    def data(self) -> CommonDatasetKwargs:
        """Return the settings of the data set."""
        return self.dataset.kwargs

    @property
    def name(self) -> str:
        """Return the site's name; `site_<number>` where the run file gives none."""
        return self.data.task_name or f"site_{self.data.task_id}"

    @property
    def task_id(self) -> int:
        """Return the site's number, from 1."""
        return self.data.task_id or 1

    @property
    def solver(self) -> SolverSettings:
        """Return the settings of the solver, which stands alone or within `doublegan`."""
        kwargs = self.model.kwargs
        if isinstance(kwargs, DoubleGanKwargs):
            return SolverSettings(name=kwargs.solver_name, kwargs=kwargs.solver_kwargs)
        return SolverSettings(name=self.model.name, kwargs=cast(SolverKwargs, kwargs))

    @property
    def deep_supervision(self) -> bool:
        """Return whether the solver is to learn its labels at several levels; False for one that has no such setting."""
        return bool(getattr(self.solver.kwargs, "deep_supervision", False))

    @property
    def solver_optimizer(self) -> OptimizerSettings:
        """Return the optimizer of the solver: the model's own, or else that of `train`."""
        optimizer = self.model.kwargs.optimizer_conf.M if isinstance(self.model.kwargs, DoubleGanKwargs) else None
        return optimizer or self.train.optimizer

    @property
    def resolution(self) -> int:
        """Return the side of the images that the solver sees, in pixels."""
        if self.data.img_size is not None:
            return self.data.img_size
        return self.model.kwargs.solver_side if isinstance(self.model.kwargs, DoubleGanKwargs) else 64

    @property
    def mode(self) -> str:
        """Return the strategy's name, or for the baseline its kind: local, sequential or joint."""
        kwargs = self.strategy.kwargs
        if self.strategy.name != "baseline" or not isinstance(kwargs, BaselineKwargs):
            return self.strategy.name
        return kwargs.mode or ("joint" if self.train.joint_training else "sequential")

    @property
    def facts(self) -> StrategyFacts:
        """Return the facts that the strategy states. Raises RunFileError where it states none."""
        if self.strategy.name == "baseline":
            return strategy_facts(self.mode)
        return facts_of(self.strategy.name, type(self.strategy.kwargs))

    @property
    def folder_name(self) -> str:
        """Return the name of this site's folder below the output folder."""
        return self.checkpoint.save.dir or f"task_{self.task_id}"

    def data_folder(self, data_root: Path | None, base: Path) -> Path:
        """Return the site's image folder: `img_folder` below `data_root`, else below `root_path`, else below `base`.

        Raises:
            RunFileError: there is no `img_folder`, or `root_path` names no folder for this platform.
        """
        if self.data.img_folder is None:
            raise RunFileError(f"site {self.name}: dataset.kwargs.img_folder is missing")
        root = self.data.root_path or self.root_path
        if isinstance(root, dict):
            if platform.system() not in root and data_root is None:
                raise RunFileError(f"root_path names no folder for {platform.system()}; it has {', '.join(root)}")
            root = root.get(platform.system(), "")
        return (data_root if data_root is not None else base / (root or "")) / self.data.img_folder
