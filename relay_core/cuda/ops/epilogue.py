"""Apply in one pass what follows a modulated convolution: demodulation, noise, bias, leaky ReLU, gain and clamp."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relay_core.cuda import loader

Maybe = Tensor | None


def epilogue(
    y: Tensor,
    scale: Maybe = None,
    noise: Maybe = None,
    strength: Maybe = None,
    bias: Maybe = None,
    alpha: float = 0.2,
    gain: float = 2**0.5,
    clamp: float | None = None,
) -> Tensor:
    """Compute `clip(gain * lrelu(y * scale + noise * strength + bias), -clamp, clamp)`.

    Shape: y (N, C, H, W), scale (N, C), noise (N, 1, H, W) or (H, W), strength () or (1,), bias (C,) -> shape of y.

    It runs as one pass of the library where there is one (`relay::epilogue`), and its derivative as another that also makes
    the sums for scale, strength and bias; else as torch's own operations. No gradient goes to `noise` in the first case.

    Args:
        y: a convolution's result.
        scale: factor of each plane (the demodulation), or None.
        noise: noise to add, the same for all channels of a sample, or None.
        strength: factor of the noise; None is 1.
        bias: bias of each channel, or None.
        alpha: slope for negative values.
        gain: factor after the activation.
        clamp: bound of the absolute value of the result, or None.
    """
    bound = math.inf if clamp is None else clamp
    if loader.worth_calling(y) and not (noise is not None and noise.requires_grad):
        kind = loader.compute_dtype(y)
        scale, strength, bias = (None if t is None else t.to(kind) for t in (scale, strength, bias))
        noise = None if noise is None else noise.to(y.dtype)
        out: Tensor = torch.ops.relay.epilogue(y, scale, noise, strength, bias, alpha, gain, bound)
        return out
    return reference(y, scale, noise, strength, bias, alpha, gain, bound)


def reference(
    y: Tensor, scale: Maybe, noise: Maybe, strength: Maybe, bias: Maybe, alpha: float, gain: float, clamp: float
) -> Tensor:
    """Compute `epilogue` by its definition, in torch's own operations; `clamp` is infinity for none."""
    y = F.leaky_relu(_linear(y, scale, noise, strength, bias), alpha)
    if gain != 1:
        y = y * gain
    return y if clamp == math.inf else y.clamp(-clamp, clamp)


def _linear(y: Tensor, scale: Maybe, noise: Maybe, strength: Maybe, bias: Maybe) -> Tensor:
    """Compute the input of the leaky ReLU."""
    if scale is not None:
        y = y * scale.to(y.dtype)[:, :, None, None]
    if noise is not None:
        y = y + (noise if strength is None else noise * strength).to(y.dtype)
    return y if bias is None else y + bias.to(y.dtype)[:, None, None]


def _slope(y: Tensor, terms: tuple[Maybe, ...], alpha: float, gain: float, clamp: float) -> Tensor:
    """Compute the derivative of the epilogue by the input of the leaky ReLU; `terms` are scale, noise, strength and bias."""
    u = _linear(y, *terms)
    slope = torch.where(u > 0, gain, gain * alpha)
    return slope if clamp == math.inf else slope * ((F.leaky_relu(u, alpha) * gain).abs() <= clamp)


def reference_grad(
    g: Tensor, y: Tensor, scale: Maybe, noise: Maybe, strength: Maybe, bias: Maybe, *numbers: float
) -> tuple[Tensor, Tensor]:
    """Compute the gradient by y, and of each plane the sums that give those by bias, scale and strength: (3, N, C)."""
    gu = g * _slope(y, (scale, noise, strength, bias), *numbers)
    kind = loader.compute_dtype(y)
    by_noise = torch.zeros_like(gu) if noise is None else gu * noise
    sums = torch.stack([t.sum(dim=(2, 3), dtype=kind) for t in (gu, gu * y, by_noise)])
    return (gu if scale is None else gu * scale.to(y.dtype)[:, :, None, None]), sums


def reference_grad_grad(
    v: Tensor, w: Tensor, g: Tensor, y: Tensor, scale: Maybe, noise: Maybe, strength: Maybe, bias: Maybe, *numbers: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of <v, gy> + <w, sums> by g, y and scale; gy and sums are the results of `reference_grad`."""
    m = _slope(y, (scale, noise, strength, bias), *numbers)
    by_bias, by_scale, by_strength = w.to(y.dtype)[..., None, None].unbind()
    along = v if scale is None else v * scale.to(y.dtype)[:, :, None, None]
    along = along + by_bias + by_scale * y + (0 if noise is None else by_strength * noise)
    return m * along, m * g * by_scale, (m * g * v).sum(dim=(2, 3), dtype=loader.compute_dtype(y))


def _call(name: str, outs: tuple[Tensor, ...], tensors: tuple[Maybe, ...], y: Tensor, noise: Maybe, *numbers: float) -> None:
    """Call a function of the library; after its results it takes `tensors`, scale, noise, strength and bias last."""
    library = loader.library(y.device.type, y.device.index)
    assert not isinstance(library, str)
    n, c, height, width = y.shape
    pixels, kind = height * width, loader.layout(y)
    stride = pixels if noise is not None and noise.numel() == n * pixels and noise.ndim == 4 else 0
    if y.numel():
        loader.call(
            library, name, *outs, *(t if t is None else _dense(t, kind) for t in tensors), loader.DTYPES[y.dtype],
            kind == torch.channels_last, n * c, c, pixels, stride, loader.doubles(*numbers),
        )  # fmt: skip


def _dense(t: Tensor, kind: torch.memory_format) -> Tensor:
    """Lay out images in the memory format `kind`, all else contiguously (one channel of noise is both)."""
    return t.contiguous(memory_format=kind) if t.ndim == 4 and t.shape[1] > 1 else t.contiguous()


def _has_library(y: Tensor) -> bool:
    return y.dtype in loader.DTYPES and not isinstance(loader.library(y.device.type, y.device.index), str)


def _count_parts(y: Tensor) -> int:
    """Return the number of parts that the library computes the sums of a plane in."""
    library = loader.library(y.device.type, y.device.index)
    assert not isinstance(library, str)
    return int(library.relay_epilogue_parts(y.shape[2] * y.shape[3], loader.layout(y) == torch.channels_last))


def _empty_like(y: Tensor) -> Tensor:
    return torch.empty_like(y, memory_format=loader.layout(y))


_REST = "Tensor? scale, Tensor? noise, Tensor? strength, Tensor? bias, float alpha, float gain, float clamp"
torch.library.define("relay::epilogue", f"(Tensor y, {_REST}) -> Tensor")
torch.library.define("relay::epilogue_grad", f"(Tensor g, Tensor y, {_REST}) -> (Tensor, Tensor)")
torch.library.define(
    "relay::epilogue_grad_grad", f"(Tensor v, Tensor w, Tensor g, Tensor y, {_REST}) -> (Tensor, Tensor, Tensor)"
)


def _forward(y: Tensor, scale: Maybe, noise: Maybe, strength: Maybe, bias: Maybe, *numbers: float) -> Tensor:
    if not _has_library(y):
        return loader.fresh(reference(y, scale, noise, strength, bias, *numbers), y, loader.layout(y))
    out = _empty_like(y)
    _call("relay_epilogue", (out,), (y, scale, noise, strength, bias), y, noise, *numbers)
    return out


def _gradient(g: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    if not _has_library(y):
        gy, sums = reference_grad(g, y, *rest)
        return loader.fresh(gy, g, loader.layout(y)), sums
    terms, numbers = rest[:4], rest[4:]
    gy, parts = _empty_like(y), _count_parts(y)
    sums = torch.empty(parts, 3, *y.shape[:2], dtype=loader.compute_dtype(y), device=y.device)
    _call("relay_epilogue_grad", (gy, sums), (g, y, *terms), y, terms[1], *numbers)
    return gy, (sums[0] if parts == 1 else sums.sum(0))


def _second_gradient(v: Tensor, w: Tensor, g: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    if not _has_library(y):
        by_g, by_y, by_scale = reference_grad_grad(v, w, g, y, *rest)
        kind = loader.layout(y)
        return by_g.contiguous(memory_format=kind), by_y.contiguous(memory_format=kind), by_scale
    terms, numbers = rest[:4], rest[4:]
    parts = _count_parts(y)
    by_scale = torch.empty(parts, *y.shape[:2], dtype=loader.compute_dtype(y), device=y.device)
    by_g, by_y = _empty_like(y), _empty_like(y)
    _call("relay_epilogue_grad_grad", (by_g, by_y, by_scale), (v, w, g, y, *terms), y, terms[1], *numbers)
    return by_g, by_y, (by_scale[0] if parts == 1 else by_scale.sum(0))


def _fake(y: Tensor, *_: Any) -> Tensor:
    return _empty_like(y)


def _fake_gradient(g: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty_like(y), y.new_empty(3, *y.shape[:2], dtype=loader.compute_dtype(y))


def _fake_second(v: Tensor, w: Tensor, g: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like(y), _empty_like(y), y.new_empty(*y.shape[:2], dtype=loader.compute_dtype(y))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.numbers = inputs[5:]
    ctx.save_for_backward(*inputs[:5])


def _backward(ctx: Any, g: Tensor) -> tuple[Maybe, ...]:
    tensors = ctx.saved_tensors
    gy, sums = torch.ops.relay.epilogue_grad(g, *tensors, *ctx.numbers)
    _, scale, _, strength, bias = tensors
    by_scale = None if scale is None else sums[1]
    by_strength = None if strength is None else sums[2].sum().reshape(strength.shape)
    by_bias = None if bias is None else sums[0].sum(0)
    return gy, by_scale, None, by_strength, by_bias, None, None, None


def _setup_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.numbers = inputs[6:]
    ctx.save_for_backward(*inputs[:6])


def _backward_gradient(ctx: Any, v: Tensor, w: Tensor) -> tuple[Maybe, ...]:
    """Return gradients by g, y and scale; the slope is piecewise constant, so strength, bias and noise get none."""
    by_g, by_y, by_scale = torch.ops.relay.epilogue_grad_grad(v, w, *ctx.saved_tensors, *ctx.numbers)
    return by_g, by_y, None if ctx.saved_tensors[2] is None else by_scale, *[None] * 6


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _backward_second(ctx: Any, *_: Tensor) -> tuple[Maybe, ...]:
    raise NotImplementedError("the epilogue has two derivatives, not three")


torch.library.impl("relay::epilogue", ("cpu", "cuda"), _forward)
torch.library.impl("relay::epilogue_grad", ("cpu", "cuda"), _gradient)
torch.library.impl("relay::epilogue_grad_grad", ("cpu", "cuda"), _second_gradient)
torch.library.register_fake("relay::epilogue", _fake)
torch.library.register_fake("relay::epilogue_grad", _fake_gradient)
torch.library.register_fake("relay::epilogue_grad_grad", _fake_second)
torch.library.register_autograd("relay::epilogue", _backward, setup_context=_setup)
torch.library.register_autograd("relay::epilogue_grad", _backward_gradient, setup_context=_setup_gradient)
torch.library.register_autograd("relay::epilogue_grad_grad", _backward_second, setup_context=_setup_second)
