"""The generator: mapping network and synthesis, 'skip' architecture; with SPADE when conditioned on a label map."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from relay_core import distributed
from relay_core.cuda import bias_act, modulated_conv2d, setup_filter, styled_conv2d, upsample2d
from relay_core.models.stylegan2.layers import (
    RESAMPLE_TAPS,
    FullyConnected,
    MappingNetwork,
    block_resolutions,
    channels_at,
    clamp_for,
)
from relay_core.models.stylegan2.spade import Spade

SHARPNESS = 4.0
"""Factor on the logits of classes: the pyramid begins at values about 1, which then make a clear choice."""
Noise = Literal["random", "const", "none"]
"""Fresh noise a sample, the layers' fixed buffers, or none."""


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU. Shape: (N, in, H, H), w (N, w_dim) -> (N, out, H up, H up)."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, resolution: int, up: int = 1) -> None:
        super().__init__()
        self.resolution, self.up = resolution, up
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.register_buffer("resample_filter", setup_filter(RESAMPLE_TAPS), persistent=False)
        self.noise_const: Tensor
        self.resample_filter: Tensor

    def forward(self, x: Tensor, w: Tensor, noise: Noise) -> Tensor:
        """Convolve with the style w."""
        added: Tensor | None = None
        if noise == "random":
            added = distributed.randn(x.shape[0], 1, self.resolution, self.resolution, device=x.device)
        elif noise == "const":
            added = self.noise_const
        return styled_conv2d(
            x, self.weight, self.affine(w), self.bias, added, self.noise_strength, up=self.up, padding=1,
            resample_filter=self.resample_filter, flip_weight=self.up == 1, clamp=clamp_for(x),
        )  # fmt: skip


class ToImage(nn.Module):
    """Modulated 1x1 convolution to image channels, not demodulated. Shape: (N, in, H, H), w -> (N, out, H, H)."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int) -> None:
        super().__init__()
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.weight_gain = 1 / in_channels**0.5

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Convolve with the style w."""
        x = modulated_conv2d(x, self.weight, self.affine(w) * self.weight_gain, demodulate=False)
        return bias_act(x, self.bias, clamp=clamp_for(x))


class SynthesisBlock(nn.Module):
    """[SPADE ->] conv0 (up 2; not in the first block) -> conv1 -> image so far, up-sampled, plus toImage."""

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, resolution: int, img_channels: int, label_channels: int
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.dtype = torch.float32
        first = in_channels == 0
        self.num_convs = 1 if first else 2
        self.const = nn.Parameter(torch.randn(out_channels, 4, 4)) if first else None
        self.spade = Spade(in_channels or out_channels, label_channels) if label_channels else None
        self.conv0 = None if first else StyledConv(in_channels, out_channels, w_dim, resolution, up=2)
        self.conv1 = StyledConv(out_channels, out_channels, w_dim, resolution)
        self.to_image = ToImage(out_channels, img_channels, w_dim)
        self.register_buffer("resample_filter", setup_filter(RESAMPLE_TAPS), persistent=False)
        self.resample_filter: Tensor

    def forward(
        self, x: Tensor | None, image: Tensor | None, ws: Tensor, label_map: Tensor | None, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """One step of the pyramid. ws (N, num_convs + 1, w_dim); the image accumulates in float32."""
        if x is None:
            assert self.const is not None
            x = self.const[None].expand(ws.shape[0], -1, -1, -1)
        x = x.to(self.dtype)
        if self.spade is not None:
            assert label_map is not None
            x = self.spade(x, label_map)
        styles = iter(ws.unbind(dim=1))
        if self.conv0 is not None:
            x = self.conv0(x, next(styles), noise)
        x = self.conv1(x, next(styles), noise)
        step = self.to_image(x, next(styles)).to(torch.float32)
        image = step if image is None else upsample2d(image, self.resample_filter) + step
        return x, image


class Generator(nn.Module):
    """StyleGAN2 generator of label maps, or of images conditioned on label maps.

    Shape: z (N, z_dim), c (N, c_dim) [, label map (N, 1, R, R)] -> (N, img_channels, R, R), about [-1, 1].

    Args:
        z_dim: size of the latent.
        c_dim: number of site slots.
        w_dim: size of a style.
        resolution: R, a power of two.
        img_channels: channels of the result.
        mapping_layers: fully connected layers of the mapping network.
        channel_base: feature maps at resolution r are min(channel_base / r, channel_max).
        channel_max: see above.
        label_channels: channels of the label map; 0 builds an unconditional pyramid (the label generator).
        classes: K, of a label map that is to be drawn: the pyramid gives each pixel K shares (softmax), and the result, in
            one channel, is the mean of the classes' values -1 ... 1; 0 draws values.

    Raises:
        ValueError: the resolution is no power of two.
    """

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        *,
        mapping_layers: int = 8,
        channel_base: int = 8192,
        channel_max: int = 256,
        label_channels: int = 0,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.z_dim, self.resolution, self.classes = z_dim, resolution, classes
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, mapping_layers)
        blocks, in_channels = [], 0
        for side in block_resolutions(resolution):
            out_channels = channels_at(side, channel_base, channel_max)
            blocks.append(SynthesisBlock(in_channels, out_channels, w_dim, side, classes or img_channels, label_channels))
            in_channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.num_ws = sum(block.num_convs for block in blocks) + 1

    @property
    def pyramid(self) -> list[SynthesisBlock]:
        """The blocks, coarsest first."""
        return cast(list[SynthesisBlock], list(self.blocks))

    def use_half(self, dtype: torch.dtype, resolutions: int = 4) -> None:
        """Run the upper `resolutions` blocks in `dtype` (float16 or bfloat16)."""
        for block in self.pyramid[-resolutions:]:
            block.dtype = dtype

    def styles(self, z: Tensor, c: Tensor, truncation: float = 1.0) -> Tensor:
        """One style for all layers: (N, num_ws, w_dim)."""
        return self.mapping(z, c, truncation)[:, None].expand(-1, self.num_ws, -1)

    def mixed_styles(
        self, z: Tensor, c: Tensor, other_z: Tensor, other_c: Tensor, crossover: Tensor, truncation: float = 1.0
    ) -> Tensor:
        """Styles of (z, c) before layer `crossover` (N,) and of (other_z, other_c) from there on: (N, num_ws, w_dim)."""
        both = self.mapping(torch.cat([z, other_z]), torch.cat([c, other_c]), truncation)
        first, second = both.chunk(2)
        layer = torch.arange(self.num_ws, device=z.device)
        return torch.where((layer[None] < crossover[:, None])[:, :, None], first[:, None], second[:, None])

    def synthesize(self, ws: Tensor, label_map: Tensor | None = None, noise: Noise = "random") -> Tensor:
        """The picture for styles ws (N, num_ws, w_dim)."""
        x: Tensor | None = None
        image: Tensor | None = None
        start = 0
        for block in self.pyramid:
            stop = start + block.num_convs
            x, image = block(x, image, ws[:, start : stop + 1], label_map, noise)
            start = stop
        assert image is not None
        if not self.classes:
            return image
        shares = (SHARPNESS * image).softmax(dim=1)
        values = torch.linspace(-1, 1, self.classes, device=image.device)
        return (shares * values[:, None, None]).sum(dim=1, keepdim=True)

    def forward(
        self, z: Tensor, c: Tensor, label_map: Tensor | None = None, truncation: float = 1.0, noise: Noise = "random"
    ) -> Tensor:
        """The picture for latents z and site codes c."""
        return self.synthesize(self.styles(z, c, truncation), label_map, noise)
