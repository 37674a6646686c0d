"""Check a compiled library on a device: it is used there only if it gives what the definitions give."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from relay_core.cuda.ops.bias_act import bias_act
from relay_core.cuda.ops.epilogue import epilogue
from relay_core.cuda.ops.upfirdn2d import setup_filter, upfirdn2d

_SYM6 = [0.0154, 0.0035, -0.1180, -0.0483, 0.4911, 0.7876, 0.3379, -0.0726, -0.0211, 0.0447, 0.0018, -0.0078]
_SHAPE = (2, 16, 36, 32)
_TOLERANCE = {torch.float32: 5e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""Largest mean error over mean size; the definition's convolutions may be rounded to TF32. A wrong index gives about 1."""


def outcomes(device: torch.device) -> Iterator[tuple[str, torch.dtype, list[Tensor]]]:
    """Run each op on the same inputs; yield its name, the type, and its results with first and second derivatives."""
    for dtype in _TOLERANCE:
        for kind in (torch.contiguous_format, torch.channels_last):
            x, noise = _wave(_SHAPE, device, dtype, kind), _wave((2, 1, *_SHAPE[2:]), device, dtype, kind)
            bias, scale = _wave(_SHAPE[1:2], device, dtype), _wave(_SHAPE[:2], device, dtype)
            strength = _wave((1,), device, dtype)[0]
            yield "bias_act", dtype, _with_derivatives(lambda a, b: bias_act(a, b, act="lrelu", clamp=2.0), [x, bias])
            yield (
                "epilogue",
                dtype,
                _with_derivatives(
                    lambda a, s, b, n=noise, t=strength: epilogue(a, s, n, t, b, alpha=0.2, gain=1.4, clamp=2.0),
                    [x, scale, bias],
                ),
            )
            for taps, up, down in (
                ([1, 3, 3, 1], 1, 1),
                ([1, 3, 3, 1], 2, 1),
                ([1, 3, 3, 1], 1, 2),
                (_SYM6, 2, 1),
                (_SYM6, 1, 2),
            ):
                f = setup_filter(taps).to(device)
                yield (
                    "upfirdn2d",
                    dtype,
                    _with_derivatives(lambda a, f=f, u=up, d=down: upfirdn2d(a, f, up=u, down=d, padding=6), [x]),
                )


def disagreement(ours: Iterator[tuple[str, torch.dtype, list[Tensor]]], theirs: list[list[Tensor]]) -> str | None:
    """Say which op is the first whose results are not `theirs`, those of the definition; return None where all agree."""
    for (name, dtype, results), expected in zip(ours, theirs, strict=True):
        for a, b in zip(results, expected, strict=True):
            error = (a.float() - b.float()).abs().mean()  # on average: rounding may take a value across a kink
            if not error <= _TOLERANCE[dtype] * (b.float().abs().mean() + 1e-3):
                return f"{name} in {str(dtype).removeprefix('torch.')} gives other values than its definition"
    return None


def _wave(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, kind: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Make numbers between -1 and 1 without the use of any random state."""
    count = torch.Size(shape).numel()
    values = (torch.arange(count, dtype=torch.float32) * 0.7311).sin().reshape(shape)
    values = values.to(device=device, dtype=dtype)
    return values.contiguous(memory_format=kind) if len(shape) == 4 else values


def _with_derivatives(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Return a function's result, its first derivatives by all inputs, and its second ones (zero where there are none)."""
    inputs = [value.detach().requires_grad_() for value in inputs]
    with torch.enable_grad():
        y = function(*inputs)
        first = torch.autograd.grad((y * _wave(tuple(y.shape), y.device, y.dtype)).sum(), inputs, create_graph=True)
        differentiable = [g for g in first if g.requires_grad]  # none where the op is linear
        total = torch.stack([g.square().mean() for g in differentiable]).sum() if differentiable else None
        second = torch.autograd.grad(total, inputs, allow_unused=True) if total is not None else [None] * len(inputs)
    second_or_zero = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, second, strict=True)]
    return [t.detach() for t in (y, *first, *second_or_zero)]
