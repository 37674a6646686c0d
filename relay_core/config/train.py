"""Define the settings of the training itself: budget, batch, loss, optimizer."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from relay_core.config.base import Settings
from relay_core.config.explain import suggestion
from relay_core.config.losses import LossSettings
from relay_core.config.privacy import PrivacySettings

Augmentation = Literal["none", "standard", "published"]


_ARGUMENTS = {
    "Adam": {"betas", "eps", "amsgrad", "fused"}, "AdamW": {"betas", "eps", "amsgrad", "fused"},
    "SGD": {"momentum", "dampening", "nesterov", "fused"},
    "NAdam": {"betas", "eps", "momentum_decay", "decoupled_weight_decay"},
    "RAdam": {"betas", "eps", "decoupled_weight_decay"}, "Adamax": {"betas", "eps"},
    "Adagrad": {"lr_decay", "initial_accumulator_value", "eps", "fused"}, "Adadelta": {"rho", "eps"},
    "RMSprop": {"alpha", "eps", "centered", "momentum"},
}  # fmt: skip
"""Class name in torch.optim -> its arguments beside those of all."""
FUSED = tuple(name for name, arguments in _ARGUMENTS.items() if "fused" in arguments)
"""Optimizers that can go over all parameters in one pass."""


class SchedulerSettings(Settings):
    """How the learning rate changes over a site's budget."""

    name: Literal["constant", "cosine", "linear", "poly"] = "constant"
    """constant; cosine (torch's CosineAnnealingLR over the budget): half a cosine down to `final`; linear: a line there;
    poly: the power 0.9 of that line (nnU-Net). torch's other schedulers, which count epochs, are not here."""
    final: float = Field(default=0.0, ge=0, le=1)
    """Last learning rate, as a share of the first."""

    @field_validator("name", mode="before")
    @classmethod
    def _accept_torch_name(cls, value: object) -> object:
        return "cosine" if value == "CosineAnnealingLR" else value

    def factor(self, progress: float) -> float:
        """Return the factor on the learning rate at `progress` (0..1) of the site's budget."""
        from math import cos, pi

        falling = {
            "constant": 1.0,
            "cosine": (1 + cos(pi * progress)) / 2,
            "linear": 1 - progress,
            "poly": (1 - progress) ** 0.9,
        }[self.name]
        return self.final + (1 - self.final) * falling


class OptimizerSettings(Settings):
    """An optimizer of torch.optim and its arguments."""

    name: Literal["Adam", "AdamW", "SGD", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop"] = "Adam"
    """Class name in torch.optim."""
    kwargs: dict[str, Any] = {"lr": 0.001}
    """Its arguments: lr, betas, weight_decay, momentum, ..."""
    lr_scheduler: SchedulerSettings | None = None
    """Course of the learning rate; none: constant."""

    @model_validator(mode="after")
    def _known_arguments(self) -> Self:
        arguments = {"lr", "weight_decay", "maximize", "foreach", "capturable", "differentiable"} | _ARGUMENTS[self.name]
        for key in self.kwargs:
            if key not in arguments:
                raise ValueError(f"torch.optim.{self.name} has no argument {key!r}{suggestion(key, arguments)}")
        return self

    def lr_factor(self, progress: float) -> float:
        """Return the factor on the learning rate at `progress` (0..1) of the site's budget."""
        return 1.0 if self.lr_scheduler is None else self.lr_scheduler.factor(progress)


class TrainSettings(Settings):
    """Budget and conditions of one site's training."""

    num_mimgs: float | None = Field(default=None, gt=0)
    """Budget in millions of images shown."""
    num_epochs: int | None = Field(default=None, ge=1)
    """Budget in passes over the site's training images; give this or `num_mimgs`."""
    solver_num_mimgs: float | None = Field(default=None, gt=0)
    """Budget of the solver alone, in millions of images; none: the whole budget."""
    solver_num_epochs: int | None = Field(default=None, ge=1)
    """Budget of the solver alone, in passes over the site's training images; give this or `solver_num_mimgs`."""
    batch_size: int = Field(default=16, ge=2)
    """Images a step over all processes, replayed ones included. A single process halves a batch that does not fit into its
    memory, and adds up the gradients of as many more."""
    precision: Literal["32", "16", "bf16", "64"] = "32"
    """Bits of the training's arithmetic on a GPU; a CPU computes in 32, or in bf16 or 64 where asked."""
    loss: LossSettings = LossSettings()
    """Loss of the solver."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """Optimizer of the solver, unless the model has its own (`optimizer_conf.M`)."""
    augment: Augmentation = "published"
    """What the solver sees is augmented: real and replayed images alike, whatever the strategy. `published` holds
    colour inversion, hue, blur, noise and geometry; `standard` leaves out inversion and black corners."""
    joint_training: bool = False
    """Train on all sites' images in one place: the upper reference, possible on one machine only."""
    gradient_clip: float | None = Field(default=None, gt=0)
    """Largest norm of the solver's gradient."""
    accumulate_grad_batches: int = Field(default=1, ge=1)
    """Batches whose gradients are added up before an optimizer moves."""
    privacy: PrivacySettings | None = None
    """Differentially private training, an experiment; none: off."""
    check_val_every_n_epoch: int | None = Field(default=None, ge=1)
    """Evaluate on the site's own test images every so many epochs; none: at the end only."""
    log_every_n_steps: int = Field(default=20, ge=1)
    """Steps between two events of losses."""
    sample_every_n_steps: int | None = Field(default=None, ge=1)
    """Steps between two grids of generated samples beside the site's own; none: at the end only, or as `--grids` says."""
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """Seconds between two checkpoints: the most that a crash can cost."""
    sync_batchnorm: bool = False
    """Compute batch-norm statistics over all GPUs."""

    @field_validator("precision", mode="before")
    @classmethod
    def _precision_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.num_mimgs is None) == (self.num_epochs is None):
            raise ValueError("give either num_mimgs (millions of images) or num_epochs, and not both")
        if self.solver_num_mimgs is not None and self.solver_num_epochs is not None:
            raise ValueError("give either solver_num_mimgs (millions of images) or solver_num_epochs, and not both")
        return self

    def steps(self, images: int) -> int:
        """Return the number of steps of the whole budget at a site with `images` training images."""
        if self.num_mimgs is not None:
            return max(1, round(self.num_mimgs * 1e6 / self.batch_size))
        assert self.num_epochs is not None
        return max(1, -(-images * self.num_epochs // self.batch_size))

    def solver_steps(self, images: int) -> int:
        """Return the number of steps in which the solver learns at a site with `images` training images."""
        shown: float = math.inf
        if self.solver_num_mimgs is not None:
            shown = self.solver_num_mimgs * 1e6
        elif self.solver_num_epochs is not None:
            shown = images * self.solver_num_epochs
        return min(self.steps(images), round(shown / self.batch_size) if shown < math.inf else self.steps(images))
