"""Everything that one site's training needs, merged from the run file."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from relay_core.config.base import Settings
from relay_core.config.datasets import CommonDatasetKwargs, FolderKwargs, FundusKwargs
from relay_core.config.model import DoubleGanKwargs, UNetKwargs
from relay_core.config.train import OptimizerSettings, TrainSettings
from relay_core.errors import NotAvailableYet, RunFileError


class FundusDataset(Settings):
    """Optic disc and cup in DoFE's layout."""

    name: Literal["fundus"]
    kwargs: FundusKwargs


class FolderDataset(Settings):
    """Any folder of images and masks."""

    name: Literal["folder"]
    kwargs: FolderKwargs


class UnavailableDataset(Settings):
    """A data set of the published code that this version cannot read."""

    name: Literal["mediastinum-tumor", "midline"]
    kwargs: dict[str, Any] = {}


class NoKwargs(Settings):
    """No settings."""


class RelayStrategy(Settings):
    """Relay learning; its settings stand with the model `doublegan`."""

    name: Literal["relay"]
    kwargs: NoKwargs = NoKwargs()


class BaselineKwargs(Settings):
    """Which baseline."""

    mode: Literal["local", "sequential", "joint"] | None = None
    """local: each site alone. sequential: fine-tune on from site to site. joint: all data in one place.
    None: joint where `train.joint_training` says so, sequential otherwise."""


class BaselineStrategy(Settings):
    """Training of the solver alone."""

    name: Literal["baseline"]
    kwargs: BaselineKwargs = BaselineKwargs()


class UnavailableStrategy(Settings):
    """A strategy of the published code that this version does not have."""

    name: Literal["si", "owm"]
    kwargs: dict[str, Any] = {}


class DoubleGanModel(Settings):
    """The relay's networks."""

    name: Literal["doublegan"]
    kwargs: DoubleGanKwargs = DoubleGanKwargs()


class UNetModel(Settings):
    """A U-Net alone."""

    name: Literal["U-Net"]
    kwargs: UNetKwargs = UNetKwargs()


class UnavailableModel(Settings):
    """A network of the published zoo that this version does not have."""

    name: Literal[
        "OWM-Net", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
        "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202",
    ]  # fmt: skip
    kwargs: dict[str, Any] = {}


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
    dataset: Annotated[FundusDataset | FolderDataset | UnavailableDataset, Field(discriminator="name")]
    """The site's images."""
    strategy: Annotated[RelayStrategy | BaselineStrategy | UnavailableStrategy, Field(discriminator="name")]
    """How the site learns."""
    model: Annotated[DoubleGanModel | UNetModel | UnavailableModel, Field(discriminator="name")]
    """The networks."""
    train: TrainSettings
    """Budget and conditions."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """Start and end."""

    def require_available(self) -> None:
        """Check that this version carries out what the settings ask for.

        Raises:
            NotAvailableYet: it does not.
            RunFileError: settings that exclude each other.
        """
        for what, part in (("dataset", self.dataset), ("strategy", self.strategy), ("model", self.model)):
            if isinstance(part, UnavailableDataset | UnavailableStrategy | UnavailableModel):
                raise NotAvailableYet(f"{what} {part.name!r} is known but not available yet in this version")
        if self.strategy.name == "relay" and self.model.name != "doublegan":
            raise RunFileError(f"strategy relay needs model doublegan, not {self.model.name!r}")
        self._check_sizes()
        if self.data.out_range != (-1.0, 1.0):
            raise NotAvailableYet("dataset.kwargs.out_range other than [-1, 1] is not available yet in this version")
        if isinstance(self.model.kwargs, DoubleGanKwargs) and not self.model.kwargs.single_cid:
            raise NotAvailableYet("model.kwargs.single_cid: false is not available yet in this version")

    def _check_sizes(self) -> None:
        """Channels, classes and sizes that data set, networks and loss must agree on."""
        wanted = (self.solver.in_channels, self.solver.num_classes)
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
        if self.strategy.name == "relay" and self.resolution != side:
            raise RunFileError(f"dataset.kwargs.img_size is {self.resolution}, the generators draw {side} (img_resolution)")

    def shared(self) -> dict[str, Any]:
        """Plain settings that all sites of a relay agree on: no paths, no machine's own."""
        plain = self.model_dump(mode="json", exclude={"num_workers", "root_path", "checkpoint"})
        kwargs = plain["dataset"]["kwargs"]
        for key in ("img_folder", "root_path"):
            kwargs.pop(key, None)
        if kwargs.get("class_names") is None:  # a run keeps the identity that it had before there was this key
            kwargs.pop("class_names", None)
        return plain

    def without_pretraining(self) -> SiteSettings:
        """The same for networks whose weights come from a checkpoint: no file of pretrained weights is needed."""
        plain = {"pretrain": False, "pretrain_file": None}
        kwargs = self.model.kwargs
        if isinstance(kwargs, DoubleGanKwargs):
            kwargs = kwargs.model_copy(update={"solver_kwargs": kwargs.solver_kwargs.model_copy(update=plain)})
        elif isinstance(kwargs, UNetKwargs):
            kwargs = kwargs.model_copy(update=plain)
        return self.model_copy(update={"model": self.model.model_copy(update={"kwargs": kwargs})})

    @property
    def data(self) -> CommonDatasetKwargs:
        """Settings of the data set."""
        if isinstance(self.dataset, UnavailableDataset):
            raise NotAvailableYet(f"dataset {self.dataset.name!r} is known but not available yet in this version")
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
    def solver(self) -> UNetKwargs:
        """Settings of the solver, alone or within doublegan."""
        kwargs = self.model.kwargs
        if isinstance(kwargs, DoubleGanKwargs):
            return kwargs.solver_kwargs
        assert isinstance(kwargs, UNetKwargs)
        return kwargs

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
    def mode(self) -> Literal["relay", "local", "sequential", "joint"]:
        """The strategy, with the baseline's kind."""
        if not isinstance(self.strategy, BaselineStrategy):
            return "relay"
        return self.strategy.kwargs.mode or ("joint" if self.train.joint_training else "sequential")

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
