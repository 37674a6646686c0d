"""Image operations with one strength per sample; `relay_core.data.augment` chooses and orders them.

All take x (n, C, H, W) with brightness in 0..1 and strengths (n,), and return the same shape; results may leave 0..1
a little where the operation does not clip. The images may be of any size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

JPEG_LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
)
"""Quantisation steps of JPEG luminance (8x8) at quality 50, ITU-T T.81 table K.1."""


def _per_sample(strength: Tensor) -> Tensor:
    return strength[:, None, None, None]


def invert(x: Tensor, _: Tensor) -> Tensor:
    """Return the negative, 1 - x; the second argument is there only to match the other operations."""
    return 1 - x


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply the brightness by `factor` and clip to 0..1."""
    return (x * _per_sample(factor)).clamp(0, 1)


def gamma(x: Tensor, exponent: Tensor) -> Tensor:
    """Clip the brightness to 0..1 and raise it to the power `exponent`."""
    return x.clamp(0, 1) ** _per_sample(exponent)


def hue_saturation(x: Tensor, hue_factor: Tensor, saturation_factor: Tensor) -> Tensor:
    """Multiply hue (0..1 from red round to red, wrapping) and saturation of the HSV colours; x has 3 channels."""
    x = x.clamp(0, 1)
    value, strongest = x.max(dim=1, keepdim=True)
    span = value - x.amin(dim=1, keepdim=True)
    # In units of a sixth of the circle, relative to the strongest channel: the other two say which way and how far.
    after, before = x.gather(1, (strongest + 1) % 3), x.gather(1, (strongest + 2) % 3)
    hue = (2 * strongest + (after - before) / span.clamp(min=1e-6)) % 6
    hue = hue * _per_sample(hue_factor)
    span = torch.minimum(span * _per_sample(saturation_factor), value)
    offsets = torch.tensor([5.0, 3.0, 1.0], device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    sector = (hue + offsets) % 6
    return value - span * torch.minimum(sector, 4 - sector).clamp(0, 1)


def _filter_each(x: Tensor, kernels: Tensor) -> Tensor:
    """Filter each sample with its own odd kernel, shape (n, k, k), replicating the border."""
    n, channels, height, width = x.shape
    kernels = kernels.repeat_interleave(channels, dim=0)[:, None].to(x.dtype)
    x = F.pad(x, [kernels.shape[-1] // 2] * 4, mode="replicate").flatten(0, 1)[None]
    return F.conv2d(x, kernels, groups=n * channels).view(n, channels, height, width)


def motion_blur(x: Tensor, length: Tensor, angle: Tensor) -> Tensor:
    """Average along a line, as if the camera had moved.

    Args:
        x: images.
        length: length of the line in pixels, at most 5.
        angle: direction of the line in radians.
    """
    steps = torch.linspace(-0.5, 0.5, 9, device=x.device)
    cells = torch.arange(-2.0, 3.0, device=x.device)
    along = (length - 1)[:, None] * steps  # pixel centres, the outer ones half a pixel inside the ends
    near_x = (1 - (cells - (along * angle.cos()[:, None])[..., None]).abs()).clamp(min=0)  # (n, steps, 5)
    near_y = (1 - (cells - (along * angle.sin()[:, None])[..., None]).abs()).clamp(min=0)
    return _filter_each(x, torch.einsum("nsy,nsx->nyx", near_y, near_x) / len(steps))


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur with a Gaussian of `sigma` pixels, up to about 0.8 (the kernel is 5x5)."""
    cells = torch.arange(-2.0, 3.0, device=x.device)
    profile = torch.exp(-cells.square() / (2 * sigma.clamp(min=1e-2)[:, None].square()))
    profile = profile / profile.sum(dim=1, keepdim=True)
    return _filter_each(x, profile[:, :, None] * profile[:, None, :])


def sharpen(x: Tensor, amount: Tensor) -> Tensor:
    """Sharpen: add `amount` times the difference between the image and its 3x3 mean, then clip to 0..1."""
    box = torch.full((3, 3), 1 / 9, device=x.device)
    delta = torch.zeros(3, 3, device=x.device)
    delta[1, 1] = 1
    return _filter_each(x, delta + amount[:, None, None] * (delta - box)).clamp(0, 1)


def noise(x: Tensor, sigma: Tensor, seed: Tensor) -> Tensor:
    """Add Gaussian noise that depends on each sample's own seed, a number in 0..1.

    The numbers come from hashing (seed, pixel index) and not from torch's generator, which would have to advance by a
    whole batch of noise on every process even when no sample of the process is noisy.
    """
    pixels = x[0].numel()
    counter = (seed.double() * 2**32).long()[:, None] + torch.arange(pixels, device=x.device) * 0x9E3779B9
    mixed = counter & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):  # the finaliser of MurmurHash3
        mixed = ((mixed ^ (mixed >> shift)) * factor) & 0xFFFFFFFF
    first, second = ((mixed >> 16).to(x.dtype) + 0.5) / 2**16, (mixed & 0xFFFF).to(x.dtype) / 2**16
    normal = (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()  # Box and Muller
    return x + normal.view_as(x) * _per_sample(sigma)


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """Imitate the loss of JPEG: 8x8 blocks, cosine transform, rounding to the luminance steps in every channel.

    A real JPEG file stores brightness and two coarser colour channels; the blocks and the ringing are the same.

    Args:
        x: images.
        quality: 1..100, on the scale of the JPEG library.
    """
    height, width = x.shape[2:]
    x = F.pad(x, [0, -width % 8, 0, -height % 8], mode="replicate")
    blocks = (x * 255 - 128).unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # (n, C, rows, cols, 8, 8)
    k = torch.arange(8.0, device=x.device)
    cosines = torch.cos(math.pi / 8 * k[:, None] * (k + 0.5)) / 2
    cosines[0] /= math.sqrt(2)
    percent = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    table = torch.tensor(JPEG_LUMINANCE, device=x.device).view(8, 8)
    steps = (table * percent[:, None, None] / 100).round().clamp(1, 255)[:, None, None, None]
    blocks = ((cosines @ blocks @ cosines.T) / steps).round() * steps
    blocks = (cosines.T @ blocks @ cosines).transpose(3, 4).flatten(2, 3).flatten(3, 4)
    return ((blocks[..., :height, :width] + 128) / 255).clamp(0, 1)
