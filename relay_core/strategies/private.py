"""Differentially private gradients: DP-SGD (Abadi 2016, arXiv 1607.00133).

At each step every unit, a patient or an image, is drawn with the same probability (Poisson sampling). The gradient of each
that was drawn is clipped, the sum gets Gaussian noise, and is divided by how many were expected. What follows from such
gradients alone may be handed over: generators learn from discriminators that were trained so (Xie 2018, arXiv 1802.06739;
Torkzadehmahani 2019, arXiv 2001.09700), and replayed images come from generators.
"""

from __future__ import annotations

import contextlib
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relay_core.config import PrivacySettings
from relay_core.strategies.accountant import Spent, epsilon

_DRAW, _NOISE, _REST = range(3)
"""What random numbers are for."""


class Privacy:
    """What one private training keeps: a secret that all its randomness follows from, its units, and what it spent.

    Who knew the secret could subtract the noise: it stays in the checkpoints of a training that is not over, leaves the site
    with none, and does not follow from `random_seed`, which every site knows. All that a step draws is a pure function of
    secret and step, so that a training that is resumed goes on bit-equal.
    """

    def __init__(self, settings: PrivacySettings) -> None:
        self.settings = settings
        self.secret = secrets.token_bytes(32)
        self.units: list[list[int]] = []
        """Numbers of each unit's images."""
        self.unit = "image"
        """What a unit is: `patient` or `image`."""
        self.expected = 0
        """Units that the present step is expected to draw."""
        self._step = self._updates = 0
        self._spent: Counter[tuple[float, float, int]] = Counter()

    def enter(self, subjects: Sequence[str], names: Sequence[str]) -> None:
        """Take the images of a site, those of one patient together.

        Args:
            subjects: the patient of each image; its name where patients are not named.
            names: the name of each image.
        """
        of_unit: dict[str, list[int]] = {}
        for number, subject in enumerate(subjects):
            of_unit.setdefault(subject, []).append(number)
        self.units = list(of_unit.values())
        self.unit = "image" if list(subjects) == list(names) else "patient"

    def _random(self, *purpose: int) -> np.random.Generator:
        words = np.frombuffer(self.secret, np.uint32).tolist()
        return np.random.default_rng(np.random.SeedSequence(words, spawn_key=purpose, pool_size=8))

    @property
    def seed(self) -> int:
        """A seed for what else is random, such as augmentation.

        It must not be known either: known numbers, dealt out in the order of a batch, would make what is drawn for one image
        depend on who else was drawn, and one unit would move the gradients of others.
        """
        return int(self._random(_REST).integers(1 << 62))

    def rate(self, expected: int) -> float:
        """Return the probability that a unit is drawn where so many are expected."""
        return min(1.0, expected / len(self.units))

    def draw(self, place: int, expected: int) -> list[int]:
        """Return the numbers of the images of a step: each unit is drawn or not by itself, then one image of it.

        Args:
            place: where the training stands, a number that no other step has.
            expected: how many are drawn in the mean.
        """
        random = self._random(_DRAW, place)
        drawn = random.random(len(self.units)) < self.rate(expected)
        return [self.units[i][random.integers(len(self.units[i]))] for i in np.flatnonzero(drawn)]

    @contextlib.contextmanager
    def step(self, number: int, expected: int) -> Iterator[None]:
        """Note, when a step ends, how many optimizers have learned from what it drew."""
        self._step, self.expected, self._updates = number, expected, 0
        yield
        if self._updates:
            self._spent[self.settings.noise_multiplier, self.rate(expected), self._updates] += 1

    def differentiate(self, losses: Iterable[Tensor], parameters: Sequence[torch.nn.Parameter], share: float) -> Tensor:
        """Set `grad` of all parameters to the noisy sum of the clipped gradients, times `share`; return the mean loss.

        Args:
            losses: the loss of each unit that was drawn, made one after the other.
            parameters: the weights that one optimizer moves; the norm is that over all of them.
            share: factor that makes the sum a mean.
        """
        largest = self.settings.max_grad_norm
        sums = [torch.zeros_like(p, requires_grad=False) for p in parameters]
        seen: list[Tensor] = []
        for loss in losses:
            seen.append(loss.detach())
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            pairs = [(total, gradient) for total, gradient in zip(sums, gradients, strict=True) if gradient is not None]
            norm = float(torch.nn.utils.get_total_norm([gradient for _, gradient in pairs]))
            if np.isfinite(norm):  # one that is not counts as none
                torch._foreach_add_(*map(list, zip(*pairs, strict=True)), alpha=min(1.0, largest / (norm + 1e-6)))
        random = self._random(_NOISE, self._step, self._updates)
        self._updates += 1
        for p, total in zip(parameters, sums, strict=True):
            noise = torch.from_numpy(random.standard_normal(total.shape, dtype=np.float32)).to(total)
            p.grad = total.add_(noise, alpha=self.settings.noise_multiplier * largest).mul_(share)
        return torch.stack(seen).mean() if seen else parameters[0].new_zeros([])

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint and a history say of it."""
        spent = [Spent(*kind, steps) for kind, steps in sorted(self._spent.items())]
        return {
            "unit": self.unit,
            "units": len(self.units),
            "epsilon": epsilon(spent, self.settings.delta),
            "delta": self.settings.delta,
            "max_grad_norm": self.settings.max_grad_norm,
            "spent": [list(one) for one in spent],
        }

    def restore(self, facts: dict[str, Any], secret: bytes | None) -> None:
        """Go on from `facts`, and with the secret if it is still there; new randomness is as good, but not bit-equal."""
        self._spent = Counter({(noise, rate, updates): steps for noise, rate, updates, steps in facts["spent"]})
        self.secret = secret or self.secret
