"""Apply bias, activation, gain and clamp in one call."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relay_core.cuda import loader

SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
PIECEWISE = {"linear", "relu", "lrelu"}


@dataclass(frozen=True)
class Activation:
    """An activation with its derivatives, its default slope, and the gain that keeps a unit second moment after it.

    `code` is the libraries' number: 0 for the piecewise linear ones, which differ in the slope of their negative half.
    """

    function: Callable[[Tensor, float], Tensor]
    first: Callable[[Tensor, float], Tensor]
    second: Callable[[Tensor], Tensor]
    alpha: float = 0.0
    gain: float = 1.0
    code: int = 0


def _step(u: Tensor, slope: float) -> Tensor:
    return torch.where(u > 0, torch.ones_like(u), slope)


def _sigmoid_slope(u: Tensor) -> Tensor:
    s = torch.sigmoid(u)
    return s * (1 - s)


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda x, _: x, lambda u, _: torch.ones_like(u), torch.zeros_like),
    "relu": Activation(lambda x, _: F.relu(x), lambda u, _: _step(u, 0.0), torch.zeros_like, gain=2**0.5),
    "lrelu": Activation(F.leaky_relu, _step, torch.zeros_like, alpha=0.2, gain=2**0.5),
    "tanh": Activation(
        lambda x, _: torch.tanh(x), lambda u, _: 1 - u.tanh() ** 2, lambda u: -2 * u.tanh() * (1 - u.tanh() ** 2), code=1
    ),
    "sigmoid": Activation(
        lambda x, _: torch.sigmoid(x),
        lambda u, _: _sigmoid_slope(u),
        lambda u: _sigmoid_slope(u) * (1 - 2 * u.sigmoid()),
        code=2,
    ),
    "elu": Activation(
        lambda x, _: F.elu(x), lambda u, _: u.clamp(max=0).exp(), lambda u: u.clamp(max=0).exp() * (u <= 0), code=3
    ),
    "selu": Activation(
        lambda x, _: F.selu(x),
        lambda u, _: SELU_SCALE * torch.where(u > 0, torch.ones_like(u), SELU_ALPHA * u.clamp(max=0).exp()),
        lambda u: SELU_SCALE * SELU_ALPHA * u.clamp(max=0).exp() * (u <= 0),
        code=4,
    ),
    "softplus": Activation(lambda x, _: F.softplus(x), lambda u, _: torch.sigmoid(u), _sigmoid_slope, code=5),
    "swish": Activation(
        lambda x, _: F.silu(x),
        lambda u, _: torch.sigmoid(u) * (1 + u * (1 - torch.sigmoid(u))),
        lambda u: _sigmoid_slope(u) * (2 + u * (1 - 2 * torch.sigmoid(u))),
        gain=2**0.5,
        code=6,
    ),
}
"""The activations by name; `alpha` is the slope of the leaky ReLU's negative half."""


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Compute `clip(gain * act(x + b), -clamp, clamp)`.

    Shape: x any; b (x.shape[dim],); the result has x's shape and dtype.

    It runs as one pass of the library where there is one (`relay::bias_act`), else as torch's own operations; both are
    differentiable twice.

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
    if b is not None and b.shape != (x.shape[dim],):
        raise ValueError(f"bias of shape {tuple(b.shape)} does not fit dimension {dim} of {tuple(x.shape)}")
    alpha = spec.alpha if act != "lrelu" or alpha is None else alpha
    gain = spec.gain if gain is None else gain
    if loader.worth_calling(x) and not (act == "linear" and b is None and clamp is None):
        bound = math.inf if clamp is None else clamp
        dim = dim % x.ndim
        y: Tensor = torch.ops.relay.bias_act(x, None if b is None else b.to(x.dtype), dim, act, alpha, gain, bound)
        return y
    return reference(x, b, dim, act, alpha, gain, math.inf if clamp is None else clamp)


def reference(x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float) -> Tensor:
    """Compute `bias_act` by its definition, in torch's own operations; `clamp` is infinity for none."""
    if b is not None:
        x = x + _broadcast_along(b, x, dim)
    x = ACTIVATIONS[act].function(x, alpha)
    if gain != 1:
        x = x * gain
    return x if clamp == math.inf else x.clamp(-clamp, clamp)


def reference_grad(
    g: Tensor, x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float, order: int,
    from_output: bool,
) -> Tensor:  # fmt: skip
    """Multiply g by the derivative of `reference`, of order 1 or 2, at x.

    With `from_output` x is the result instead of the input; this serves piecewise linear activations.
    """
    u = x if b is None or from_output else x + _broadcast_along(b, x, dim)
    spec = ACTIVATIONS[act]
    slope = (spec.first(u, alpha) if order == 1 else spec.second(u)) * gain
    if clamp != math.inf:
        size = x.abs() if from_output else (spec.function(u, alpha) * gain).abs()
        slope = slope * ((size < clamp) if from_output else (size <= clamp))
    return g * slope


def _broadcast_along(b: Tensor, x: Tensor, dim: int) -> Tensor:
    """Shape a bias so that it runs along dimension `dim` of x."""
    return b.to(x.dtype).reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])


def _layout(x: Tensor, dim: int) -> torch.memory_format:
    return loader.layout(x) if dim == 1 else torch.contiguous_format


def _run_library(
    x: Tensor, b: Tensor | None, g: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float,
    order: int = 0, from_output: bool = False,
) -> Tensor | None:  # fmt: skip
    """Let the library compute `bias_act` (order 0) or its derivative times g; return None where it cannot."""
    library = loader.library(x.device.type, x.device.index)
    if isinstance(library, str) or x.dtype not in loader.DTYPES:
        return None
    kind = _layout(x, dim)
    out = torch.empty_like(x, memory_format=kind)
    inner = 1 if kind == torch.channels_last else math.prod(x.shape[dim + 1 :])
    if x.numel():
        loader.call(
            library, "relay_bias_act", out, x.contiguous(memory_format=kind), None if b is None else b.contiguous(),
            None if g is None else g.contiguous(memory_format=kind), loader.DTYPES[x.dtype], x.numel(), inner, x.shape[dim],
            ACTIVATIONS[act].code, order, from_output, loader.doubles(1.0 if act == "linear" else alpha, gain, clamp),
        )  # fmt: skip
    return out


torch.library.define(
    "relay::bias_act", "(Tensor x, Tensor? b, int dim, str act, float alpha, float gain, float clamp) -> Tensor"
)
torch.library.define(
    "relay::bias_act_grad",
    "(Tensor g, Tensor x, Tensor? b, int dim, str act, float alpha, float gain, float clamp, int order, bool from_output)"
    " -> Tensor",
)


def _forward(x: Tensor, b: Tensor | None, dim: int, *rest: Any) -> Tensor:
    y = _run_library(x, b, None, dim, *rest)
    return loader.fresh(reference(x, b, dim, *rest), x, _layout(x, dim)) if y is None else y


def _gradient(g: Tensor, x: Tensor, b: Tensor | None, dim: int, *rest: Any) -> Tensor:
    y = _run_library(x, b, g, dim, *rest)
    return loader.fresh(reference_grad(g, x, b, dim, *rest), x, _layout(x, dim)) if y is None else y


def _fake(x: Tensor, b: Tensor | None, dim: int, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=_layout(x, dim))


def _fake_gradient(g: Tensor, x: Tensor, b: Tensor | None, dim: int, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=_layout(x, dim))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save the result where it tells the derivative, as the next layer keeps it anyway; else save x and b."""
    x, b, ctx.dim, act, alpha, gain, clamp = inputs
    ctx.settings = (act, alpha, gain, clamp)
    ctx.from_output = act in PIECEWISE and alpha >= 0 and gain > 0
    ctx.save_for_backward(*((output, None) if ctx.from_output else (x, b)))


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, b = ctx.saved_tensors
    gx = torch.ops.relay.bias_act_grad(g, x, b, ctx.dim, *ctx.settings, 1, ctx.from_output)
    gb = _sum_all_but(gx, ctx.dim) if ctx.needs_input_grad[1] else None
    return gx, gb, None, None, None, None, None


def _setup_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, x, b, ctx.dim, *ctx.settings, ctx.order, ctx.from_output = inputs
    ctx.save_for_backward(g, x, b)


def _backward_gradient(ctx: Any, gg: Tensor) -> tuple[Tensor | None, ...]:
    g, x, b = ctx.saved_tensors
    by_g = torch.ops.relay.bias_act_grad(gg, x, b, ctx.dim, *ctx.settings, ctx.order, ctx.from_output)
    by_x = by_b = None
    if ctx.settings[0] not in PIECEWISE and (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
        if ctx.order > 1:
            raise NotImplementedError("bias_act has two derivatives, not three")
        by_x = torch.ops.relay.bias_act_grad(gg * g, x, b, ctx.dim, *ctx.settings, 2, False)
        by_b = None if b is None else _sum_all_but(by_x, ctx.dim)
    return by_g, by_x, by_b, *[None] * 7


def _sum_all_but(x: Tensor, dim: int) -> Tensor:
    """Sum over all dimensions but `dim`."""
    others = [i for i in range(x.ndim) if i != dim]
    return x.sum(others) if others else x


torch.library.impl("relay::bias_act", ("cpu", "cuda"), _forward)
torch.library.impl("relay::bias_act_grad", ("cpu", "cuda"), _gradient)
torch.library.register_fake("relay::bias_act", _fake)
torch.library.register_fake("relay::bias_act_grad", _fake_gradient)
torch.library.register_autograd("relay::bias_act", _backward, setup_context=_setup)
torch.library.register_autograd("relay::bias_act_grad", _backward_gradient, setup_context=_setup_gradient)
