"""Test-time flips: a network is asked four times about each image, and answers once."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

FLIPS = ((), (2,), (3,), (2, 3))
"""Axes of an image (N, C, H, W) that each of the four flips reverses."""


class Flipped(nn.Module):
    """A solver whose answer is the mean of its probabilities over the four flips of an image.

    Shape: (N, C, H, W) -> (N, K, H, W), or (N, K) for classification: logarithms of the mean probabilities, which are logits
    whose softmax is that mean. It takes four times as long as the solver alone.

    Args:
        solver: network that gives logits of the same shapes.
    """

    def __init__(self, solver: nn.Module) -> None:
        super().__init__()
        self.solver = solver

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the mean over the flips."""
        answers = torch.stack([self._unflipped(x, axes) for axes in FLIPS])
        return answers.logsumexp(dim=0) - math.log(len(FLIPS))

    def _unflipped(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Return the logarithms of the probabilities of a flipped image, flipped back where they are of pixels."""
        answer = cast(Tensor, self.solver(x.flip(axes))).log_softmax(dim=1)
        return answer.flip(axes) if answer.ndim == x.ndim else answer
