"""The random transformations of adaptive discriminator augmentation, as small matrices and filter gains.

Source: Karras et al. 2020, "Training generative adversarial networks with limited data" (arXiv 2006.06676), appendix B.
Nothing here touches a pixel: everything is drawn and multiplied on the CPU, (N, 3, 3) numbers at most, so that a
pipe on a GPU knows without waiting for the device which samples move and how far.

Shapes: N samples, K colour channels, B = 4 frequency bands. Coordinates are pixels, relative to the image's centre.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relay_core import distributed
from relay_core.cuda import setup_filter

# Daubechies' symlets with 2 and 6 vanishing moments (decomposition lowpass): the lowpass of the geometric resampling
# is orthogonal, so that flips and whole-pixel shifts come out exact; sym2 is short enough for the filter bank.
SYM2 = (-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025)
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)

INTEGER_SHIFT = 0.125
SCALE_STD = 0.2
FRACTIONAL_SHIFT_STD = 0.125
BRIGHTNESS_STD = 0.2
CONTRAST_STD = 0.5
SATURATION_STD = 1.0
BAND_STD = 1.0
NOISE_STD = 0.1
BAND_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)
"""Expected power of each band in natural images (1/f spectrum)."""


class Draws:
    """Random numbers for N samples, each transformation kept with probability `p`.

    With `percentile` every draw takes that percentile of its distribution and every transformation is kept: a uniform
    draw becomes q, a normal one erfinv(2q - 1) (the scale of the published implementation's debugging mode, a factor
    sqrt(2) below the true percentile).
    """

    def __init__(self, n: int, p: float, percentile: float | None = None) -> None:
        self.n = n
        self.p = p
        self.percentile = percentile

    def uniform(self) -> Tensor:
        """Numbers in [0, 1), shape (N,)."""
        if self.percentile is None:
            return distributed.rand(self.n)
        return torch.full((self.n,), self.percentile)

    def signed(self) -> Tensor:
        """Uniform numbers in [-1, 1), shape (N,)."""
        return self.uniform() * 2 - 1

    def normal(self) -> Tensor:
        """Standard normal numbers, shape (N,)."""
        return distributed.randn(self.n) if self.percentile is None else torch.erfinv(self.signed())

    def half_normal(self) -> Tensor:
        """Absolute values of standard normal numbers, shape (N,)."""
        return distributed.randn(self.n).abs() if self.percentile is None else torch.erfinv(self.uniform())

    def choice(self, options: int) -> Tensor:
        """Whole numbers 0..options-1 as floats, shape (N,)."""
        return (self.uniform() * options).floor()

    def keep(self, value: Tensor, neutral: float, p: float | None = None) -> Tensor:
        """`value` with probability p, else `neutral`; shape (N,)."""
        if self.percentile is not None:
            return value
        return value.where(distributed.rand(self.n) < (self.p if p is None else p), neutral)


def _matrix(rows: list[list[Tensor | float]]) -> Tensor:
    """(N, 3, 3) from entries that are (N,) tensors or plain numbers."""
    like = next(entry for row in rows for entry in row if isinstance(entry, Tensor))
    entries = [e if isinstance(e, Tensor) else torch.full_like(like, e) for row in rows for e in row]
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def translation(x: Tensor, y: Tensor) -> Tensor:
    """Homogeneous matrices (N, 3, 3) of shifts by (x, y)."""
    return _matrix([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def scaling(x: Tensor, y: Tensor) -> Tensor:
    """Homogeneous matrices (N, 3, 3) of scalings by x and y."""
    return _matrix([[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, 1.0]])


def rotation(angle: Tensor) -> Tensor:
    """Homogeneous matrices (N, 3, 3) of rotations (radians, from the x axis towards the y axis)."""
    sin, cos = angle.sin(), angle.cos()
    return _matrix([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def geometry(draws: Draws, height: int, width: int, general: bool) -> Tensor:
    """Where each output pixel comes from: matrices (N, 3, 3) from output to input coordinates.

    The paper composes the forward transformation from the image's side, newest on the left; its inverse grows on the
    right, factor by factor, which is what is multiplied here.

    Args:
        draws: source of randomness.
        height: of the image, pixels.
        width: of the image, pixels.
        general: the general geometric transformations too, not only the pixel blits.
    """
    one = torch.ones(draws.n)
    inverse = scaling(1 - 2 * draws.keep(draws.choice(2), 0.0), one)
    inverse = inverse @ rotation(draws.keep(draws.choice(4), 0.0) * (math.pi / 2))
    shift_x, shift_y = draws.signed() * INTEGER_SHIFT, draws.signed() * INTEGER_SHIFT
    kept = draws.keep(one, 0.0)  # one decision for both axes
    inverse = inverse @ translation(-(shift_x * kept * width).round(), -(shift_y * kept * height).round())
    if not general:
        return inverse
    # Two rotations, before and after the anisotropic scaling: the chance of at least one of them is p.
    p_rotate = 1 - math.sqrt(1 - min(max(draws.p, 0.0), 1.0))
    shrink = torch.exp2(-draws.keep(draws.normal() * SCALE_STD, 0.0))
    inverse = inverse @ scaling(shrink, shrink)
    inverse = inverse @ rotation(draws.keep(draws.signed() * math.pi, 0.0, p_rotate))
    stretch = torch.exp2(draws.keep(draws.normal() * SCALE_STD, 0.0))
    inverse = inverse @ scaling(1 / stretch, stretch)
    # The fixed percentile stands for one rotation, not for two (published debugging mode).
    turn = torch.zeros(draws.n) if draws.percentile is not None else draws.signed() * math.pi
    inverse = inverse @ rotation(draws.keep(turn, 0.0, p_rotate))
    shift_x, shift_y = draws.normal() * FRACTIONAL_SHIFT_STD, draws.normal() * FRACTIONAL_SHIFT_STD
    kept = draws.keep(one, 0.0)
    return inverse @ translation(-shift_x * kept * width, -shift_y * kept * height)


def colour(draws: Draws, channels: int, chroma: bool) -> Tensor:
    """Affine colour transformations, shape (N, K, K + 1): y = M[:, :, :K] x + M[:, :, K].

    Brightness, contrast, luma flip; with `chroma` (three channels only) hue and saturation. The luma axis is the
    diagonal of colour space; one channel is its own luma, and its flip is an inversion.

    Args:
        draws: source of randomness.
        channels: K.
        chroma: turn the hue and scale the saturation as well.
    """
    eye = torch.eye(channels)
    luma = torch.full((channels, channels), 1 / channels)
    m = torch.cat([eye, torch.zeros(channels, 1)], dim=1).repeat(draws.n, 1, 1)
    m[:, :, -1] += draws.keep(draws.normal() * BRIGHTNESS_STD, 0.0)[:, None]
    m = m * torch.exp2(draws.keep(draws.normal() * CONTRAST_STD, 0.0))[:, None, None]
    m = (eye - 2 * luma * draws.keep(draws.choice(2), 0.0)[:, None, None]) @ m
    if not chroma:
        return m
    angle = draws.keep(draws.signed() * math.pi, 0.0)[:, None, None]
    # Rodrigues' formula about the luma axis: cross(v, .) with v = (1, 1, 1) / sqrt(3).
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    m = (luma + angle.cos() * (eye - luma) + angle.sin() * cross) @ m
    saturation = torch.exp2(draws.keep(draws.normal() * SATURATION_STD, 0.0))[:, None, None]
    return (luma + (eye - luma) * saturation) @ m


def band_gains(draws: Draws) -> Tensor:
    """Amplification of each frequency band, shape (N, B), normalised band after band to keep the expected power."""
    power = torch.tensor(BAND_POWER)
    total = torch.ones(draws.n, len(BAND_POWER))
    for band in range(len(BAND_POWER)):
        gain = torch.ones_like(total)
        gain[:, band] = torch.exp2(draws.keep(draws.normal() * BAND_STD, 0.0))
        total = total * gain / (power * gain.square()).sum(dim=1, keepdim=True).sqrt()
    return total


def filter_bank() -> Tensor:
    """The four octave bands as symmetric 1-D filters that sum to a unit impulse, shape (B, taps).

    The products H(z)H(1/z)/2 and H(-z)H(-1/z)/2 of sym2 split a signal into a low and a high half. The low half is
    split again after the halves found so far have been stretched by two: lowest octave first.
    """
    low = torch.tensor(SYM2, dtype=torch.float64)
    high = low * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    halves = [_convolve(f[None], f.flip(0)) / 2 for f in (low, high)]
    bank = torch.zeros(len(BAND_POWER), 1, dtype=torch.float64)
    bank[0, 0] = 1.0
    for band in range(1, len(BAND_POWER)):
        stretched = torch.zeros(len(BAND_POWER), 2 * bank.shape[1] - 1, dtype=torch.float64)
        stretched[:, ::2] = bank
        bank = _convolve(stretched, halves[0][0])
        margin = (bank.shape[1] - halves[1].shape[1]) // 2
        bank[band, margin : bank.shape[1] - margin] += halves[1][0]
    return bank.float()


def _convolve(rows: Tensor, taps: Tensor) -> Tensor:
    """Full convolution of each row with `taps`."""
    full = torch.nn.functional.conv1d(rows[:, None], taps.flip(0)[None, None], padding=taps.numel() - 1)
    return full[:, 0]


def resampling_filter() -> Tensor:
    """The lowpass of the geometric resampling, 12 taps."""
    return setup_filter(SYM6)


__all__ = ["Draws", "band_gains", "colour", "filter_bank", "geometry", "resampling_filter"]
