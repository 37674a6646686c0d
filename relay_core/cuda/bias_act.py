"""Bias, activation, gain and clamp in one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """An activation, the slope it defaults to, and the gain that keeps a unit second moment after it."""

    function: Callable[[Tensor, float], Tensor]
    alpha: float = 0.0
    gain: float = 1.0


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda x, _: x),
    "relu": Activation(lambda x, _: F.relu(x), gain=2**0.5),
    "lrelu": Activation(F.leaky_relu, alpha=0.2, gain=2**0.5),
    "tanh": Activation(lambda x, _: torch.tanh(x)),
    "sigmoid": Activation(lambda x, _: torch.sigmoid(x)),
    "elu": Activation(lambda x, _: F.elu(x)),
    "selu": Activation(lambda x, _: F.selu(x)),
    "softplus": Activation(lambda x, _: F.softplus(x)),
    "swish": Activation(lambda x, _: F.silu(x), gain=2**0.5),
}
"""By name; `alpha` is the slope of the leaky ReLU's negative half."""


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """`clip(gain * act(x + b), -clamp, clamp)`.

    Shape: x any; b (x.shape[dim],); the result has x's shape and dtype.

    Args:
        x: input.
        b: bias along `dim`, or None.
        dim: the dimension of x that b runs along.
        act: a name in `ACTIVATIONS`.
        alpha: slope for negative inputs (leaky ReLU); None takes the activation's own.
        gain: factor after the activation; None takes the activation's own (sqrt 2 for the ReLU family).
        clamp: bound of the absolute value of the result, or None.

    Raises:
        ValueError: `act` is not a known name, or b does not fit x.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"unknown activation {act!r}; known: {', '.join(ACTIVATIONS)}")
    spec = ACTIVATIONS[act]
    if b is not None:
        if b.shape != (x.shape[dim],):
            raise ValueError(f"bias of shape {tuple(b.shape)} does not fit dimension {dim} of {tuple(x.shape)}")
        x = x + b.to(x.dtype).reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])
    x = spec.function(x, spec.alpha if alpha is None else alpha)
    gain = spec.gain if gain is None else gain
    if gain != 1:
        x = x * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    return x
