"""Up-sample, pad, filter with a FIR kernel, down-sample: the resampling of StyleGAN2 (Karras 2020, arXiv 1912.04958)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relay_core.cuda import loader

Factor = int | Sequence[int]


def setup_filter(
    taps: Sequence[float] | Sequence[Sequence[float]], normalize: bool = True, gain: float = 1.0, flip: bool = False
) -> Tensor:
    """Make a filter for `upfirdn2d`, float32: 8 taps and more stay separable, shorter ones become their outer product.

    Args:
        taps: 1-D or 2-D coefficients.
        normalize: scale to a sum of one, so that a constant image keeps its value.
        gain: factor on the image (both axes together).
        flip: reverse the filter.
    """
    f = torch.as_tensor(taps, dtype=torch.float32)
    if f.ndim == 1 and f.numel() < 8:
        f = f.outer(f)
    if normalize:
        f = f / f.sum()
    if flip:
        f = f.flip(list(range(f.ndim)))
    return f * gain ** (f.ndim / 2)


def _pair(value: Factor, name: str) -> tuple[int, int]:
    """Return a factor as (x, y); raise ValueError, which calls it `name`, where it is below one."""
    x, y = (value, value) if isinstance(value, int) else value
    if x < 1 or y < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return int(x), int(y)


def expand_padding(padding: Factor) -> tuple[int, int, int, int]:
    """Convert a padding `p`, `(px, py)` or `(px0, px1, py0, py1)` to the last form; negative numbers crop."""
    values = [padding] * 4 if isinstance(padding, int) else list(padding)
    if len(values) == 2:
        values = [values[0], values[0], values[1], values[1]]
    x0, x1, y0, y1 = values
    return int(x0), int(x1), int(y0), int(y1)


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Factor = 1,
    down: Factor = 1,
    padding: Factor = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """Insert `up - 1` zeros after each pixel, pad or crop, filter, keep every `down`-th pixel.

    Shape: x (N, C, H, W) -> (N, C, H', W') with H' = (H * up + pads - taps) // down + 1; the dtype is x's.

    Args:
        x: images.
        f: 2-D filter, 1-D filter (applied along both axes), or None for none.
        up: integer factor of enlargement, or (x, y).
        down: integer factor of reduction, or (x, y).
        padding: padding of the up-sampled image: one number, (x, y), or (left, right, top, bottom); negative numbers crop.
        flip_filter: correlate; the default is the true convolution.
        gain: factor on the result.

    It runs as one pass of the library where there is one (`relay::upfirdn2d`, differentiable by x as often as wanted), else
    as torch's own convolutions.

    Raises:
        ValueError: a factor is below one, or the filter is larger than the padded image.
    """
    factors, shrink, pads = _pair(up, "up"), _pair(down, "down"), expand_padding(padding)
    if f is None:
        f = torch.ones(1, 1)
    if loader.worth_calling(x) and not f.requires_grad and not _best_in_torch(x, factors):
        _out_size(x, f, factors, shrink, pads)
        f = f.to(device=x.device, dtype=loader.compute_dtype(x))
        y: Tensor = torch.ops.relay.upfirdn2d(x, f, factors, shrink, pads, flip_filter, gain)
        return y
    return reference(x, f, factors, shrink, pads, flip_filter, gain)


def reference(
    x: Tensor, f: Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int], flip_filter: bool, gain: float
) -> Tensor:
    """Compute `upfirdn2d` by its definition in torch's operations; factors: (x, y), padding: (left, right, top, bottom)."""
    (ux, uy), (dx, dy), (x0, x1, y0, y1) = up, down, padding
    f = f.to(device=x.device, dtype=x.dtype)
    if not flip_filter:
        f = f.flip(list(range(f.ndim)))
    if f.ndim == 1:
        x = _filter_axes(x, f[None, :] * gain**0.5, (ux, 1), (dx, 1), (x0, x1, 0, 0))
        return _filter_axes(x, f[:, None] * gain**0.5, (1, uy), (1, dy), (0, 0, y0, y1))
    return _filter_axes(x, f * gain, (ux, uy), (dx, dy), (x0, x1, y0, y1))


def _filter_axes(
    x: Tensor, f: Tensor, up: tuple[int, int], down: tuple[int, int], padding: tuple[int, int, int, int]
) -> Tensor:
    """Correlate with the 2-D `f`, one kernel a channel.

    Zeros are never stored: a transposed convolution of stride `up` is the up-sampling and the full convolution at once,
    and what padding adds beyond its ends is zero.
    """
    channels, height, width = x.shape[1:]
    (ux, uy), (dx, dy), (x0, x1, y0, y1) = up, down, padding
    taps_y, taps_x = f.shape
    out_x, out_y = width * ux + x0 + x1 - taps_x + 1, height * uy + y0 + y1 - taps_y + 1
    if out_x < 1 or out_y < 1:
        raise ValueError(f"a filter of {taps_y}x{taps_x} does not fit into the padded image of {tuple(x.shape)}")
    kernel = f[None, None].expand(channels, 1, taps_y, taps_x)
    if ux == uy == 1:
        if x0 == x1 >= 0 and y0 == y1 >= 0:
            return F.conv2d(x, kernel, stride=(dy, dx), padding=(y0, x0), groups=channels)
        return F.conv2d(F.pad(x, [x0, x1, y0, y1]), kernel, stride=(dy, dx), groups=channels)
    skip_x, skip_y = taps_x - 1 - x0, taps_y - 1 - y0
    rest_x, rest_y = (width - 1) * ux + taps_x - skip_x - out_x, (height - 1) * uy + taps_y - skip_y - out_y
    crop_x, crop_y = max(min(skip_x, rest_x), 0), max(min(skip_y, rest_y), 0)
    y = F.conv_transpose2d(x, kernel.flip([2, 3]), stride=(uy, ux), padding=(crop_y, crop_x), groups=channels)
    if (skip_x, rest_x, skip_y, rest_y) != (crop_x, crop_x, crop_y, crop_y):
        y = F.pad(y, [crop_x - skip_x, crop_x - rest_x, crop_y - skip_y, crop_y - rest_y])
    return y[:, :, ::dy, ::dx] if dx > 1 or dy > 1 else y


def _best_in_torch(x: Tensor, up: Sequence[int]) -> bool:
    """Whether torch's own operations do as well or better (measured): on a CPU, for channels-last images and short rows."""
    return x.device.type == "cpu" and (loader.layout(x) == torch.channels_last or (x.shape[3] < 32 and max(up) == 1))


def _out_size(x: Tensor, f: Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int]) -> tuple[int, int]:
    """Return width and height of the result; raise ValueError where the filter does not fit into the padded image."""
    taps, (x0, x1, y0, y1) = _taps(f), padding
    width = (x.shape[3] * up[0] + x0 + x1 - taps[0]) // down[0] + 1
    height = (x.shape[2] * up[1] + y0 + y1 - taps[1]) // down[1] + 1
    if width < 1 or height < 1:
        raise ValueError(f"a filter of {taps[1]}x{taps[0]} does not fit into the padded image of {tuple(x.shape)}")
    return width, height


torch.library.define(
    "relay::upfirdn2d",
    "(Tensor x, Tensor f, int[2] up, int[2] down, int[4] padding, bool flip_filter, float gain) -> Tensor",
)


def _forward(
    x: Tensor, f: Tensor, up: Sequence[int], down: Sequence[int], pads: Sequence[int], flip: bool, gain: float
) -> Tensor:
    library, kind = loader.library(x.device.type, x.device.index), loader.layout(x)
    if isinstance(library, str) or x.dtype not in loader.DTYPES or (x.is_cpu and kind == torch.channels_last):
        return loader.fresh(reference(x, f, up, down, pads, flip, gain), x, kind)
    width, height = _out_size(x, f, up, down, pads)
    x = x.contiguous(memory_format=kind)
    y = torch.empty(*x.shape[:2], height, width, dtype=x.dtype, device=x.device, memory_format=kind)
    if y.numel():
        taps, separable = _taps(f), f.ndim == 1
        sizes = (*x.shape, height, width, *up, *down, pads[0], pads[2], taps[1], taps[0], separable, flip)
        loader.call(
            library, "relay_upfirdn2d", y, x, f.contiguous(), loader.DTYPES[x.dtype],
            loader.longs((*sizes, *x.stride(), *y.stride())), gain,
        )  # fmt: skip
    return y


def _fake(
    x: Tensor, f: Tensor, up: Sequence[int], down: Sequence[int], pads: Sequence[int], flip: bool, gain: float
) -> Tensor:
    width, height = _out_size(x, f, up, down, pads)
    return torch.empty(*x.shape[:2], height, width, dtype=x.dtype, device=x.device, memory_format=loader.layout(x))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, f, ctx.up, ctx.down, ctx.pads, ctx.flip, ctx.gain = inputs
    ctx.size = x.shape[3], x.shape[2], output.shape[3], output.shape[2]
    ctx.save_for_backward(f)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradient by x: the same operation with up and down swapped, and the filter turned around."""
    (f,) = ctx.saved_tensors
    width, height, out_width, out_height = ctx.size
    taps, (ux, uy), (dx, dy), (x0, _, y0, _) = _taps(f), ctx.up, ctx.down, ctx.pads
    pads = (
        taps[0] - 1 - x0, width * ux - out_width * dx + x0 - ux + 1,
        taps[1] - 1 - y0, height * uy - out_height * dy + y0 - uy + 1,
    )  # fmt: skip
    return torch.ops.relay.upfirdn2d(g, f, ctx.down, ctx.up, pads, not ctx.flip, ctx.gain), *[None] * 6


torch.library.impl("relay::upfirdn2d", ("cpu", "cuda"), _forward)
torch.library.register_fake("relay::upfirdn2d", _fake)
torch.library.register_autograd("relay::upfirdn2d", _backward, setup_context=_setup)


def filter2d(x: Tensor, f: Tensor, padding: Factor = 0, flip_filter: bool = False, gain: float = 1.0) -> Tensor:
    """Filter at the same size (plus `padding` on every side)."""
    (w, h), (x0, x1, y0, y1) = _taps(f), expand_padding(padding)
    pads = (x0 + w // 2, x1 + (w - 1) // 2, y0 + h // 2, y1 + (h - 1) // 2)
    return upfirdn2d(x, f, padding=pads, flip_filter=flip_filter, gain=gain)


def upsample2d(x: Tensor, f: Tensor, up: Factor = 2, flip_filter: bool = False, gain: float = 1.0) -> Tensor:
    """Enlarge by the integer factor `up`; the mean is kept for a normalised filter and gain 1."""
    (ux, uy), (w, h) = _pair(up, "up"), _taps(f)
    pads = ((w + ux - 1) // 2, (w - ux) // 2, (h + uy - 1) // 2, (h - uy) // 2)
    return upfirdn2d(x, f, up=up, padding=pads, flip_filter=flip_filter, gain=gain * ux * uy)


def downsample2d(x: Tensor, f: Tensor, down: Factor = 2, flip_filter: bool = False, gain: float = 1.0) -> Tensor:
    """Shrink by the integer factor `down`."""
    (dx, dy), (w, h) = _pair(down, "down"), _taps(f)
    pads = ((w - dx + 1) // 2, (w - dx) // 2, (h - dy + 1) // 2, (h - dy) // 2)
    return upfirdn2d(x, f, down=down, padding=pads, flip_filter=flip_filter, gain=gain)


def _taps(f: Tensor) -> tuple[int, int]:
    """Return width and height of a filter; both are the length of a separable (1-D) one."""
    return f.shape[-1], f.shape[0]
