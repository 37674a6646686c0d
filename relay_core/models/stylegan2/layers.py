"""Layers with equalised learning rate: weights are N(0, 1) and scaled when used, so every layer learns at one speed."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relay_core import distributed
from relay_core.cuda import bias_act, conv2d_resample, setup_filter

RESAMPLE_TAPS = (1, 3, 3, 1)
CLAMP = 256.0
"""Bound of every convolution's result in half precision, which it keeps finite; float32 needs none."""


def clamp_for(x: Tensor) -> float | None:
    """The bound that x's type needs."""
    return None if x.dtype in (torch.float32, torch.float64) else CLAMP


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Feature maps of a block: min(channel_base / resolution, channel_max)."""
    return min(channel_base // resolution, channel_max)


def block_resolutions(resolution: int) -> list[int]:
    """4, 8, ... up to `resolution`.

    Raises:
        ValueError: `resolution` is no power of two, or below 8.
    """
    if resolution < 8 or resolution & (resolution - 1):
        raise ValueError(f"img_resolution must be a power of two of at least 8, not {resolution}")
    return [2**i for i in range(2, resolution.bit_length())]


def normalize_second_moment(x: Tensor) -> Tensor:
    """Scale each row of x (N, D) to a mean square of one (eps 1e-8)."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class FullyConnected(nn.Module):
    """y = act(x W^T + b). Shape: (N, in_features) -> (N, out_features)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_multiplier))
        self.weight_gain = lr_multiplier / in_features**0.5
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer in x's dtype."""
        weight = self.weight.to(x.dtype) * self.weight_gain
        bias = self.bias.to(x.dtype)
        bias = bias * self.bias_gain if self.bias_gain != 1 else bias
        if self.activation == "linear":
            return torch.addmm(bias, x, weight.t())
        return bias_act(x @ weight.t(), bias, act=self.activation)


class Conv2d(nn.Module):
    """Convolution with bias and activation, optionally down-sampling by 2. Shape: (N, in, H, W) -> (N, out, H', W')."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, activation: str = "linear", bias: bool = True, down: int = 1
    ) -> None:  # fmt: skip
        super().__init__()
        self.activation, self.down, self.padding = activation, down, kernel // 2
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain = 1 / (in_channels * kernel**2) ** 0.5
        self.register_buffer("resample_filter", setup_filter(RESAMPLE_TAPS), persistent=False)
        self.resample_filter: Tensor

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """Convolve; `gain` scales the result and its bound."""
        clamp = None if self.bias is None else clamp_for(x)
        weight = (self.weight * self.weight_gain).to(x.dtype)
        x = conv2d_resample(x, weight, self.resample_filter, down=self.down, padding=self.padding)
        act_gain = (2**0.5 if self.activation == "lrelu" else 1.0) * gain
        return bias_act(x, self.bias, act=self.activation, gain=act_gain, clamp=None if clamp is None else clamp * gain)


class MappingNetwork(nn.Module):
    """Latent z and site code c to a style w, or c alone when `z_dim` is 0 (the discriminator's).

    Shape: z (N, z_dim), c (N, c_dim) -> w (N, w_dim). In training mode the mean style `w_avg` follows the batches
    with decay 0.995; truncation moves styles towards it.
    """

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, num_layers: int, lr_multiplier: float = 0.01) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.embed = FullyConnected(c_dim, w_dim)
        widths = [z_dim + w_dim] + [w_dim] * num_layers
        self.layers = nn.ModuleList(
            FullyConnected(a, b, activation="lrelu", lr_multiplier=lr_multiplier) for a, b in pairwise(widths)
        )
        if z_dim:
            self.register_buffer("w_avg", torch.zeros(w_dim))
            self.w_avg: Tensor

    def forward(self, z: Tensor | None, c: Tensor, truncation: float = 1.0) -> Tensor:
        """Map; truncation psi gives `w_avg + psi (w - w_avg)`."""
        x = normalize_second_moment(self.embed(c.to(torch.float32)))
        if z is not None:
            x = torch.cat([normalize_second_moment(z.to(torch.float32)), x], dim=1)
        for layer in self.layers:
            x = layer(x)
        if z is not None and self.training:
            with torch.no_grad():
                self.w_avg.copy_(distributed.mean_(x.detach().mean(dim=0)).lerp(self.w_avg, 0.995))
        return self.w_avg.lerp(x, truncation) if truncation != 1 else x


def minibatch_std(x: Tensor, group: int = 4) -> Tensor:
    """Append one channel: the standard deviation over a group of samples, averaged over features and pixels.

    Shape: (N, C, H, W) -> (N, C + 1, H, W). A batch that `group` does not divide is one group (Karras 2018,
    arXiv 1710.10196, section 3).
    """
    n, c, h, w = x.shape
    group = group if n % group == 0 else n
    y = x.reshape(group, n // group, c, h, w)
    y = (y - y.mean(dim=0)).square().mean(dim=0)
    y = (y + 1e-8).sqrt().mean(dim=[1, 2, 3])
    return torch.cat([x, y.repeat(group)[:, None, None, None].expand(n, 1, h, w)], dim=1)


def nearest(label_map: Tensor, size: int) -> Tensor:
    """Resize (N, C, H, W) to `size` pixels a side by the nearest neighbour."""
    return label_map if label_map.shape[-1] == size else F.interpolate(label_map, size=(size, size), mode="nearest")
