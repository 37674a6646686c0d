"""Convolve with resampling, and with modulated weights like StyleGAN2 (Karras 2020, arXiv 1912.04958, section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from relay_core.cuda.ops.epilogue import epilogue
from relay_core.cuda.ops.upfirdn2d import Factor, expand_padding, upfirdn2d


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Factor = 0,
    groups: int = 1,
    flip_weight: bool = True,
) -> Tensor:
    """Convolve, with FIR-filtered up- or down-sampling folded into the convolution's stride.

    Shape: x (N, C_in, H, W), w (C_out, C_in / groups, k, k) -> (N, C_out, H * up / down, W * up / down) for
    padding (k - 1) / 2.

    Args:
        x: images.
        w: weights.
        f: low-pass filter of the resampling (see `setup_filter`), or None.
        up: integer factor of enlargement before the convolution.
        down: integer factor of reduction after it.
        padding: padding at the up-sampled resolution: one number, (x, y), or (left, right, top, bottom).
        groups: number of groups of the convolution.
        flip_weight: correlate as neural networks do; False is the true convolution.
    """
    side = w.shape[-1]
    taps = 1 if f is None else f.shape[-1]
    x0, x1, y0, y1 = expand_padding(padding)
    if up > 1:
        x0, x1, y0, y1 = (p + (taps + up - 1) // 2 if i % 2 == 0 else p + (taps - up) // 2
                          for i, p in enumerate((x0, x1, y0, y1)))  # fmt: skip
    if down > 1:
        x0, x1, y0, y1 = (p + (taps - down + 1) // 2 if i % 2 == 0 else p + (taps - down) // 2
                          for i, p in enumerate((x0, x1, y0, y1)))  # fmt: skip
    pads = (x0, x1, y0, y1)
    if up == 1 and down == 1:
        return _conv2d(x, w, pads, groups=groups, flip_weight=flip_weight)
    if side == 1 and down > 1 and up == 1:  # filter and drop pixels first: fewer to convolve
        x = upfirdn2d(x, f, down=down, padding=pads)
        return _conv2d(x, w, (0, 0, 0, 0), groups=groups, flip_weight=flip_weight)
    if side == 1 and up > 1 and down == 1:  # convolve first: fewer pixels
        x = _conv2d(x, w, (0, 0, 0, 0), groups=groups, flip_weight=flip_weight)
        return upfirdn2d(x, f, up=up, padding=pads, gain=up**2)
    if down > 1 and up == 1:
        x = upfirdn2d(x, f, padding=pads)
        return _conv2d(x, w, (0, 0, 0, 0), stride=down, groups=groups, flip_weight=flip_weight)
    return _up_conv2d(x, w, f, up, down, pads, groups, flip_weight)


def _conv2d(
    x: Tensor, w: Tensor, pads: tuple[int, int, int, int], *, stride: int = 1, groups: int, flip_weight: bool
) -> Tensor:
    """Convolve with any padding; negative numbers crop."""
    x0, x1, y0, y1 = pads
    if not flip_weight and w.shape[-1] > 1:
        w = w.flip([2, 3])
    if x0 == x1 >= 0 and y0 == y1 >= 0:
        return F.conv2d(x, w, stride=stride, padding=(y0, x0), groups=groups)
    return F.conv2d(F.pad(x, [x0, x1, y0, y1]), w, stride=stride, groups=groups)


def _up_conv2d(
    x: Tensor,
    w: Tensor,
    f: Tensor | None,
    up: int,
    down: int,
    pads: tuple[int, int, int, int],
    groups: int,
    flip_weight: bool,
) -> Tensor:
    """Apply a transposed convolution of stride `up`, then the low-pass filter: no zero is ever multiplied."""
    out_channels, in_per_group, side, _ = w.shape
    w = w.reshape(groups, out_channels // groups, in_per_group, side, side).transpose(1, 2)
    w = w.reshape(groups * in_per_group, out_channels // groups, side, side)
    if flip_weight:
        w = w.flip([2, 3])
    x0, x1, y0, y1 = (p - (side - 1) if i % 2 == 0 else p - (side - up) for i, p in enumerate(pads))
    crop_x, crop_y = max(min(-x0, -x1), 0), max(min(-y0, -y1), 0)
    x = F.conv_transpose2d(x, w, stride=up, padding=(crop_y, crop_x), groups=groups)
    pads = (x0 + crop_x, x1 + crop_x, y0 + crop_y, y1 + crop_y)
    x = upfirdn2d(x, f, padding=pads, gain=up**2)
    return upfirdn2d(x, f, down=down) if down > 1 else x


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Factor = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    fused: bool | None = None,
) -> Tensor:
    """Convolve each sample with its own weights `weight * style`, normalised per output channel.

    Shape: x (N, C_in, H, W), weight (C_out, C_in, k, k), styles (N, C_in), noise broadcastable to the result
    -> (N, C_out, H * up / down, W * up / down).

    Args:
        x: images.
        weight: shared weights, float32 master copy or x's dtype.
        styles: factor on each input channel of each sample.
        noise: noise to add to the result, or None.
        up: factor of enlargement.
        down: factor of reduction.
        padding: padding at the up-sampled resolution.
        resample_filter: low-pass filter of the resampling.
        demodulate: divide by the L2 norm of the modulated weights of each output channel (eps 1e-8).
        flip_weight: correlate; False is the true convolution.
        fused: run one grouped convolution with the weights of each sample; False scales the activations before and after
            one shared convolution. Both give the same values up to rounding; None takes the faster one (`prefers_fused`).
    """
    settings = (up, down, padding, resample_filter, demodulate, flip_weight, fused)
    y, factors = _modulated(x, weight, styles, *settings)
    if factors is not None:
        y = y * factors.to(y.dtype)[:, :, None, None]
    return y if noise is None else y + noise.to(y.dtype)


def styled_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor,
    noise: Tensor | None = None,
    noise_strength: Tensor | None = None,
    up: int = 1,
    padding: Factor = 0,
    resample_filter: Tensor | None = None,
    flip_weight: bool = True,
    clamp: float | None = None,
    fused: bool | None = None,
) -> Tensor:
    """Apply a demodulated `modulated_conv2d`, then noise, bias, leaky ReLU 0.2, gain sqrt 2 and clamp as one `epilogue`.

    Shape: as `modulated_conv2d`; bias (C_out,), noise (N, 1, H', W') or (H', W'), noise_strength ().
    """
    y, factors = _modulated(x, weight, styles, up, 1, padding, resample_filter, True, flip_weight, fused)
    return epilogue(y, factors, noise, noise_strength, bias, clamp=clamp)


def prefers_fused(x: Tensor, weight: Tensor) -> bool:
    """Whether the grouped convolution is taken for the faster form.

    On a CPU it never is: the shared one took 0.68 to 0.95 of its time for 1 and 4 samples of 64 and 128 channels. On a GPU,
    where neither has been timed, a single sample takes the grouped form: it is one group then, and there is less to scale
    than the image.
    """
    return x.is_cuda and x.shape[0] == 1 and weight.numel() < x.numel()


def _modulated(
    x: Tensor, weight: Tensor, styles: Tensor, up: int, down: int, padding: Factor, resample_filter: Tensor | None,
    demodulate: bool, flip_weight: bool, fused: bool | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return the convolution, and the factors (N, C_out) that its planes still have to be multiplied with, or None."""
    n = x.shape[0]
    out_channels, in_channels, kh, kw = weight.shape
    if x.dtype == torch.float16 and demodulate:  # without these scales half precision overflows; demodulation cancels them
        scale = 1 / ((in_channels * kh * kw) ** 0.5 * weight.norm(float("inf"), dim=[1, 2, 3], keepdim=True))
        weight = weight * scale
        styles = styles / styles.norm(float("inf"), dim=1, keepdim=True)
    factors = None
    if demodulate:
        power = weight.square().sum(dim=[2, 3]).to(styles.dtype)  # (C_out, C_in)
        factors = (styles.square() @ power.t() + 1e-8).rsqrt()  # (N, C_out)
    if not (prefers_fused(x, weight) if fused is None else fused):
        y = conv2d_resample(
            x * styles.to(x.dtype)[:, :, None, None],
            weight.to(x.dtype), resample_filter, up, down, padding, flip_weight=flip_weight,
        )  # fmt: skip
        return y, factors
    w = weight[None] * styles[:, None, :, None, None]
    if factors is not None:
        w = w * factors[:, :, None, None, None]
    y = conv2d_resample(
        x.reshape(1, n * in_channels, *x.shape[2:]),
        w.reshape(n * out_channels, in_channels, kh, kw).to(x.dtype),
        resample_filter, up, down, padding, groups=n, flip_weight=flip_weight,
    )  # fmt: skip
    return y.reshape(n, out_channels, *y.shape[2:]), None
