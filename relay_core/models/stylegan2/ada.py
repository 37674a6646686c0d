"""Adaptive discriminator augmentation: what every image passes before a discriminator, and how often.

Source: Karras et al. 2020, arXiv 2006.06676, section 3 and appendix B, written from the mathematics.
Shapes: images are (N, C, H, W); of the C channels the first K are colour, the rest (a label map) only move.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relay_core import distributed
from relay_core.cuda import upfirdn2d
from relay_core.models.stylegan2 import ada_transforms as transforms

Pipe = Literal["b", "bg", "bgc", "bgcf", "bgcfn"]
"""Blit, geometric, colour, filter, noise: how many of the steps a pipe has."""


class AugmentPipe(nn.Module):
    """Random, differentiable augmentation of real and fake images alike.

    Blit (flip, quarter turns, whole-pixel shift) and geometry (scalings, rotations, shift) become one resampling with
    an orthogonal lowpass; then colour, frequency bands and noise. Generators learn through the pipe; the R1 penalty is
    taken behind it (see `AdversarialPair.discriminate_real`).

    Args:
        pipe: steps to apply, by initials.
        color_channels: K; colour, filter and noise touch only these. By default 3 of three and more channels, 1 of one
            or two (a label map is the last channel of a discriminator's input).
        published: do as the published relay code does: four and more channels lose hue and saturation, brightness,
            contrast and luma flip treat the channels beyond the third as grey images, filter and noise touch them all.
    """

    up_filter: Tensor
    bank: Tensor

    def __init__(self, pipe: Pipe, color_channels: int | None = None, *, published: bool = False) -> None:
        super().__init__()
        if pipe not in get_args(Pipe):
            raise ValueError(f"unknown augmentation pipe {pipe!r}: one of {', '.join(get_args(Pipe))}")
        self.pipe = pipe
        self.color_channels = color_channels
        self.published = published
        self.register_buffer("up_filter", transforms.resampling_filter(), persistent=False)
        self.register_buffer("bank", transforms.filter_bank(), persistent=False)

    def forward(self, x: Tensor, p: float, percentile: float | None = None) -> Tensor:
        """Augment each sample anew.

        Shape: (N, C, H, W) -> (N, C, H, W). The result may leave the range of x.

        Args:
            x: images.
            p: probability of each transformation; at 0 the very tensor x comes back.
            percentile: for tests, take this percentile of every draw and apply everything (see `Draws`).
        """
        if p <= 0 and percentile is None:
            return x
        draws = transforms.Draws(x.shape[0], p, percentile)
        x = self._move(x, transforms.geometry(draws, x.shape[2], x.shape[3], general="g" in self.pipe))
        if self.pipe in ("b", "bg"):
            return x
        colours, rest = self._split(x)
        colours, rest = self._recolour(draws, colours, rest)
        if self.published:
            colours, rest = torch.cat([colours, rest], dim=1), rest[:, :0]
        if "f" in self.pipe:
            colours = _filter_bands(colours, transforms.band_gains(draws), self.bank)
        if "n" in self.pipe:
            sigma = draws.keep(draws.half_normal() * transforms.NOISE_STD, 0.0)
            noise = distributed.randn(*colours.shape, device=x.device).to(x.dtype)
            colours = colours + noise * sigma.to(x, non_blocking=True)[:, None, None, None]
        return torch.cat([colours, rest], dim=1) if rest.shape[1] else colours

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        channels = 3 if x.shape[1] >= 3 else 1
        if self.color_channels is not None and not self.published:
            channels = min(self.color_channels, x.shape[1])
        return x[:, :channels], x[:, channels:]

    def _recolour(self, draws: transforms.Draws, colours: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        n, channels = colours.shape[:2]
        grey_rest = self.published and rest.shape[1] > 0
        m = transforms.colour(draws, channels, chroma=channels == 3 and not grey_rest).to(colours, non_blocking=True)
        matrix, offset = m[:, :, :-1], m[:, :, -1:]
        moved = torch.baddbmm(offset, matrix, colours.flatten(2)).reshape(colours.shape)
        if grey_rest:  # a grey image is its own luma: the matrix's row sums
            rest = rest * matrix.sum(dim=2).mean(dim=1).view(n, 1, 1, 1) + offset.mean(dim=1).view(n, 1, 1, 1)
        return moved, rest

    def _move(self, x: Tensor, inverse: Tensor) -> Tensor:
        """Resample the samples whose matrix is not the identity; at small p most stay as they are."""
        moving = (inverse != torch.eye(3)).flatten(1).any(dim=1).nonzero()[:, 0]
        if len(moving) == 0:
            return x
        if len(moving) == len(x):
            return _resample(x, inverse, self.up_filter)
        index = moving.to(x.device, non_blocking=True)
        return x.index_copy(0, index, _resample(x[index], inverse[moving], self.up_filter))


def _resample(x: Tensor, inverse: Tensor, lowpass: Tensor) -> Tensor:
    """Reflect the border, up-sample by two, sample bilinearly, down-sample by two.

    The border is as wide as the batch's farthest sample reaches, at most one image (beyond: zeros). A border of always
    one image gives the same picture (1e-5, rounding of the grid) and takes 1.5 times as long; as `inverse` lives on the
    CPU, the tighter one makes nothing wait for a GPU.

    Args:
        x: images (N, C, H, W).
        inverse: (N, 3, 3) from output to input pixel coordinates, relative to the centre, on the CPU.
        lowpass: 1-D filter of the factor-two resampling.
    """
    n, channels, height, width = x.shape
    taps = lowpass.numel()
    reach = taps // 4  # of half of the filter, in pixels before up-sampling
    left, right, top, bottom = _border(inverse, width, height, reach)
    x = F.pad(x, [left, right, top, bottom], mode="reflect")
    # Samples as channels of one image: convolutions of one group a channel are several times faster so on a CPU.
    x = upfirdn2d(x.flatten(0, 1)[None], lowpass, up=2, padding=(taps // 2, taps // 2 - 1) * 2, gain=4)
    x = x.reshape(n, channels, *x.shape[2:])

    rows, columns = 2 * (height + 2 * reach), 2 * (width + 2 * reach)
    grid_to_input = _fine_to_fine(inverse, (left - right) / 2, (top - bottom) / 2)
    to_unit = torch.diag(torch.tensor([2 / x.shape[3], 2 / x.shape[2], 1.0]))
    from_unit = torch.diag(torch.tensor([columns / 2, rows / 2, 1.0]))
    theta = (to_unit @ grid_to_input @ from_unit)[:, :2].to(x, non_blocking=True)
    grid = F.affine_grid(theta, [n, channels, rows, columns], align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    crop = taps // 2 - 1 - 2 * reach
    x = upfirdn2d(x.flatten(0, 1)[None], lowpass, down=2, padding=crop, flip_filter=True)
    return x.reshape(n, channels, height, width)


def _fine_to_fine(inverse: Tensor, shift_x: float, shift_y: float) -> Tensor:
    """The same map in pixels of the doubled images; the input's centre moved by its border.

    A pixel lands on the first of its two fine pixels, not between them: both fine images lie half a fine pixel off.
    """
    border, half = torch.eye(3), torch.eye(3)
    border[:2, 2] = torch.tensor([shift_x, shift_y])
    half[:2, 2] = 0.5
    double = torch.diag(torch.tensor([2.0, 2.0, 1.0]))
    return half.inverse() @ double @ border @ inverse @ double.inverse() @ half


def _border(inverse: Tensor, width: int, height: int, reach: int) -> tuple[int, int, int, int]:
    """Pixels to add (left, right, top, bottom) so that every sample of the batch finds its input."""
    x, y = (width - 1) / 2, (height - 1) / 2
    corners = torch.tensor([[-x, -y, 1.0], [x, -y, 1.0], [x, y, 1.0], [-x, y, 1.0]])
    reached = (inverse @ corners.T)[:, :2]  # (N, 2, 4)
    low, high = (-reached).amax(dim=(0, 2)), reached.amax(dim=(0, 2))
    extra = 2 * reach
    limits = [(low[0], x, width), (high[0], x, width), (low[1], y, height), (high[1], y, height)]
    left, right, top, bottom = (min(max(int(torch.ceil(far - c + extra)), 0), size - 1) for far, c, size in limits)
    return left, right, top, bottom


def _filter_bands(x: Tensor, gains: Tensor, bank: Tensor) -> Tensor:
    """Amplify frequency bands, sample by sample, with a separable filter and reflected borders."""
    n, channels, height, width = x.shape
    taps = (gains.to(bank, non_blocking=True) @ bank).to(x.dtype)
    kernel = taps.repeat_interleave(channels, dim=0)[:, None]  # (N * C, 1, taps)
    reach = kernel.shape[2] // 2
    x = _reflect(x.reshape(1, n * channels, height, width), reach)
    x = F.conv2d(x, kernel[:, :, None, :], groups=n * channels)
    x = F.conv2d(x, kernel[:, :, :, None], groups=n * channels)
    return x.reshape(n, channels, height, width)


def _reflect(x: Tensor, pad: int) -> Tensor:
    """Reflect all borders by `pad` pixels, again and again where the image is smaller than that."""
    while pad > 0:
        step = min(pad, x.shape[2] - 1, x.shape[3] - 1)
        x = F.pad(x, [step] * 4, mode="reflect")
        pad -= step
    return x


class AdaptiveAugment:
    """Steers the probability of augmentation by how often a discriminator is right about real images.

    Every `interval` batches, counted over the whole training: p += sign(mean sign D(real) - target) * images of these
    batches / (ada_kimg * 1000), clipped to `p_range`. Between these steps nothing waits for the device.

    Args:
        target: wanted mean of sign D(real).
        interval: batches between two adjustments.
        ada_kimg: thousands of images in which p may go from 0 to 1.
        p: start.
        p_range: least and greatest p.
    """

    def __init__(
        self,
        target: float = 0.6,
        interval: int = 4,
        ada_kimg: float = 500.0,
        p: float = 0.0,
        p_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        if interval < 1 or ada_kimg <= 0 or not 0 <= p_range[0] <= p_range[1] <= 1:
            raise ValueError("interval must be 1 or more, ada_kimg positive, p_range ordered and inside 0..1")
        self.target = target
        self.interval = interval
        self.ada_kimg = ada_kimg
        self.p_range = p_range
        self.p = self._first = self._clip(p)
        self._sign_sum: Tensor | float = 0.0
        self._count = 0

    def update(self, real_logits: Tensor, batch_global: int) -> None:
        """Take one batch into account.

        Args:
            real_logits: D(real) of this process's part of the batch, any shape.
            batch_global: images of the batch over all processes.
        """
        sign = distributed.mean_(real_logits.detach().sign().mean(dtype=torch.float32))
        self._sign_sum = sign + self._sign_sum
        self._count += 1
        if self._count < self.interval:
            return
        excess = float(self._sign_sum) / self._count - self.target
        direction = (excess > 0) - (excess < 0)
        self.p = self._clip(self.p + direction * batch_global * self.interval / (self.ada_kimg * 1000))
        self._sign_sum, self._count = 0.0, 0

    def restart(self) -> None:
        """Begin as for a new discriminator."""
        self.load_state_dict({"p": self._first, "sign_sum": 0.0, "count": 0})

    def halve(self) -> None:
        """Half as much augmentation, at the start of a new site."""
        self.p = self._clip(self.p / 2)

    def state_dict(self) -> dict[str, Any]:
        """Numbers that continue the control exactly: p, sign_sum, count (the same on every process)."""
        return {"p": self.p, "sign_sum": float(self._sign_sum), "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.p, self._sign_sum, self._count = float(state["p"]), float(state["sign_sum"]), int(state["count"])

    def _clip(self, p: float) -> float:
        return min(max(p, self.p_range[0]), self.p_range[1])
