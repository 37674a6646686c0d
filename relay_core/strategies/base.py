"""What a strategy is: networks, their optimizers, and one training step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from relay_core.config import SiteSettings
from relay_core.errors import RunFileError
from relay_core.losses import Loss, at_size, marginal, over_levels
from relay_core.models import HALF, make_solver
from relay_core.strategies.private import Privacy
from relay_core.strategies.updater import Updater

AT_ONCE = 64
"""Images that are looked at together where a whole site is."""


class Images(Protocol):
    """Labelled images: one site's, or several sites' together."""

    def __len__(self) -> int: ...

    def batch(self, index: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, R, R) in the data set's range, and class ids (B, R, R), or (B,) for classification."""


@dataclass(frozen=True)
class Position:
    """Where a site's training stands: `step` of `steps` (from 0), of which the solver learns in `solver_steps`."""

    step: int
    steps: int
    solver_steps: int

    @property
    def progress(self) -> float:
        """Share of the budget that is done, 0..1."""
        return self.step / self.steps


class Strategy(ABC):
    """How a model learns at one site.

    The engine calls `begin_site` once, then, for each step, `real_count` and `step`, then `end_site`. All tensors that must
    survive a restart are in `networks` and in the optimizers of `updaters`; everything else is in `state`.
    """

    ends: ClassVar[bool] = False
    """Whether `end_site` takes something from the site: then a site that has ended cannot be trained on."""

    loss: Loss
    """Loss of a strategy that learns from labels, by `supervised`."""

    holds_real_images: ClassVar[bool] = False
    """Whether `networks` or `state` hold images of patients. Once True it is True of every subclass, and the settings must
    state the same in their `facts`."""

    def __init__(self, settings: SiteSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.name = settings.strategy.name
        self.networks: dict[str, nn.Module] = {}
        self.updaters: dict[str, Updater] = {}
        train = settings.train
        self.half = HALF.get(train.precision) if device.type == "cuda" or train.precision == "bf16" else None
        self.dtype = torch.float64 if train.precision == "64" else torch.float32
        self.low, self.high = settings.data.out_range
        self.groups = settings.data.groups
        self.privacy = None if train.privacy is None else Privacy(train.privacy)
        """Takes the gradients of the site's own images where `train.privacy` is set."""

    def _make_solver(self) -> nn.Module:
        s = self.settings
        solver = make_solver(s.solver, s.data.task, s.resolution).to(self.dtype)
        if s.train.privacy is not None and any(getattr(m, "running_mean", None) is not None for m in solver.modules()):
            raise RunFileError(
                f"train.privacy: the network {s.solver.name!r} keeps statistics of batches (batch norm): take another norm"
            )
        return solver

    def _make_solver_updater(self, solver: nn.Module | None = None) -> Updater:
        train = self.settings.train
        return Updater(
            "solver", (solver or self.solver).parameters(), self.settings.solver_optimizer,
            accumulate=train.accumulate_grad_batches, clip=train.gradient_clip, half=self.half is torch.float16,
        )  # fmt: skip

    def _signed(self, images: Tensor) -> Tensor:
        """Map images from the data set's `out_range` to [-1, 1]."""
        if (self.low, self.high) == (-1, 1):
            return images
        return (images - self.low) * (2 / (self.high - self.low)) - 1

    def _signed_batches(self, images: Images) -> Iterator[Tensor]:
        """Yield all of a site's images in [-1, 1], `AT_ONCE` at a time, on the device."""
        for part in torch.arange(len(images)).split(AT_ONCE):
            yield self._signed(images.batch(part)[0].to(self.device))

    def _ranged(self, images: Tensor) -> Tensor:
        """Map images from [-1, 1] to the data set's `out_range`: the inverse of `_signed`."""
        if (self.low, self.high) == (-1, 1):
            return images
        return (images + 1) * ((self.high - self.low) / 2) + self.low

    def _logits(self, solver: nn.Module, images: Tensor, exact: bool = False) -> Tensor:
        """Logits of a solver, in full precision, of images in [-1, 1]: (N, K, R, R), or (N, K) for classification.

        `exact` computes in full precision throughout, whatever `precision` says.
        """
        with self._arithmetic(exact):
            logits: Tensor = solver(self._ranged(images).to(self.dtype))
        return logits.to(self.dtype)

    def _arithmetic(self, exact: bool) -> torch.autocast:
        half = self.half is not None and not exact
        return torch.autocast(self.device.type, self.half or torch.bfloat16, enabled=half)

    def _logits_to_learn(self, solver: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits that `_logits` gives, and those of the solver's coarser levels, the finest of them first.

        There are coarser ones only with `deep_supervision`; such a network has `levels`. Both are what `supervised` takes.
        """
        if not self.settings.deep_supervision:
            return self._logits(solver, images), []
        with self._arithmetic(exact=False):
            levels = cast(Any, solver).levels(self._ranged(images).to(self.dtype))
        finest, *coarser = (logits.to(self.dtype) for logits in levels)
        return finest, coarser

    def answers(self, images: Tensor) -> Tensor:
        """Return the solver's logits for images (N, C, R, R) in [-1, 1], in full precision."""
        return self._logits(self.solver, images, exact=True)

    def supervised(self, logits: Tensor, labels: Tensor, coarser: Sequence[Tensor] = ()) -> Tensor:
        """Return `loss` of logits (N, K, ...) by labels (N, ...), which may be partial (`losses.marginal`).

        Args:
            logits: of the solver.
            labels: class ids, or those of groups of classes.
            coarser: logits (N, K, h, w) of coarser levels, the finest first; they learn the labels at their own sizes, and
                the loss is the weighted mean over all levels (`losses.over_levels`).
        """
        loss = self.loss(*(marginal(logits, labels, self.groups) if self.groups else (logits, labels)))
        if not coarser:
            return loss
        return over_levels([loss, *(self.supervised(level, at_size(labels, level.shape[2:])) for level in coarser)])

    @property
    def solver(self) -> nn.Module:
        """The segmenter or classifier: the network that the clinic uses."""
        return self.networks["solver"]

    @abstractmethod
    def begin_site(self, name: str, images: int, classes: Sequence[int] | None = None) -> None:
        """Prepare for a site, from the networks as they are.

        Args:
            name: the site's.
            images: its training images.
            classes: how many of them are of each class, for classification.
        """

    def schedule(self, sizes: Sequence[int], steps: int) -> Sequence[int] | None:
        """Return, for sites that are trained on at once, which one each step's images are of; None: all are mixed.

        Called before `begin_site` and before a state is restored.

        Args:
            sizes: the number of training images of each site.
            steps: the number of steps of the solver's budget.
        """
        return None

    def end_site(self, images: Images) -> None:
        """Take from a site, whose training is over, what later ones need; called once, before the last checkpoint."""

    @abstractmethod
    def real_count(self, position: Position) -> int:
        """How many of the site's own images the next step needs, over all processes; settles the step's stage."""

    def work(self, position: Position) -> Hashable:
        """Return the kind of the next step: two steps of one kind at a site take the same operations."""
        return position.step < position.solver_steps

    @abstractmethod
    def step(self, images: Tensor, labels: Tensor, position: Position) -> dict[str, Tensor]:
        """Learn from one batch of this process's images (N, C, R, R) and class ids (N, R, R) or (N,); return the losses."""

    def figures(self) -> dict[str, float]:
        """Return what people watch beside the losses, by name: nothing that the training would depend on."""
        return {}

    def state(self) -> dict[str, Any]:
        """Everything but tensors that a restart must restore, as values that JSON can hold."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore `state`; called before the tensors are loaded, so that the networks can be laid out as they were."""

    def load_handed_over(self, state: dict[str, Any]) -> None:
        """Start a new site with what the last site's `state` says of the sites before; networks are loaded apart."""

    def hand_over(self) -> list[str]:
        """Names of the networks that the next site needs."""
        return list(self.networks)

    def not_replayed(self) -> list[str]:
        """Return the sites before this one that it should replay, and cannot."""
        return []

    def received(self, networks: list[str]) -> None:
        """Learn which networks came from the site before; called before `begin_site`, where any did."""

    def missing_from(self, networks: list[str]) -> list[str]:
        """Names of networks that a checkpoint with these `networks` lacks and may lack: averages (EMA) start as copies."""
        return [name for name in self.hand_over() if name.endswith("_ema") and name not in networks]

    def samples(self, per_site: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Generate `per_site` images (N, C, R, R) in [-1, 1] and class ids for each known site; empty without generators."""
        return {}
