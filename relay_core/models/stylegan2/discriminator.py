"""The discriminator: 'resnet' architecture, minibatch standard deviation, conditioned by projection on the site code."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relay_core.models.stylegan2.layers import (
    Conv2d,
    FullyConnected,
    MappingNetwork,
    block_resolutions,
    channels_at,
    minibatch_std,
)


class DiscriminatorBlock(nn.Module):
    """conv0, conv1 down 2, plus a 1x1 skip down 2, each with gain sqrt 0.5. Shape: (N, in, H, H) -> (N, out, H/2, H/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.conv0 = Conv2d(in_channels, in_channels, 3, activation="lrelu")
        self.conv1 = Conv2d(in_channels, out_channels, 3, activation="lrelu", down=2)
        self.skip = Conv2d(in_channels, out_channels, 1, bias=False, down=2)

    def forward(self, x: Tensor) -> Tensor:
        """One step down the pyramid."""
        x = x.to(self.dtype)
        y = self.skip(x, gain=0.5**0.5)
        return y + self.conv1(self.conv0(x), gain=0.5**0.5)


class Discriminator(nn.Module):
    """Real or generated, given the site: D(x, c) = <features(x), mapping(c)> / sqrt(width).

    Shape: x (N, img_channels, R, R), c (N, c_dim) -> logits (N, 1).

    Args:
        c_dim: number of site slots.
        resolution: R, a power of two.
        img_channels: channels of x.
        mapping_layers: fully connected layers of the site code's mapping network.
        channel_base: feature maps at resolution r are min(channel_base / r, channel_max).
        channel_max: see above.

    Raises:
        ValueError: the resolution is no power of two.
    """

    def __init__(
        self, c_dim: int, resolution: int, img_channels: int, *, mapping_layers: int = 8, channel_base: int = 8192,
        channel_max: int = 256,
    ) -> None:  # fmt: skip
        super().__init__()
        sides = block_resolutions(resolution)[::-1]
        widths = [channels_at(side, channel_base, channel_max) for side in sides]
        self.from_image = Conv2d(img_channels, widths[0], 1, activation="lrelu")
        self.blocks = nn.ModuleList(DiscriminatorBlock(a, b) for a, b in pairwise(widths))
        width = widths[-1]
        self.conv = Conv2d(width + 1, width, 3, activation="lrelu")
        self.fc = FullyConnected(width * 16, width, activation="lrelu")
        self.out = FullyConnected(width, width)
        self.mapping = MappingNetwork(0, c_dim, width, mapping_layers)
        self.sees_spread = True
        """Whether it sees how samples of a batch differ (minibatch standard deviation); else its channel is 0."""

    @property
    def pyramid(self) -> list[DiscriminatorBlock]:
        """The blocks, finest first."""
        return cast(list[DiscriminatorBlock], list(self.blocks))

    def use_half(self, dtype: torch.dtype, resolutions: int = 4) -> None:
        """Run the upper `resolutions` blocks in `dtype` (float16 or bfloat16)."""
        for block in self.pyramid[:resolutions]:
            block.dtype = dtype

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Logits; softplus(-logit) is the generator's loss."""
        x = x.to(self.pyramid[0].dtype)
        x = self.from_image(x)
        for block in self.blocks:
            x = block(x)
        x = x.to(torch.float32)
        x = self.conv(minibatch_std(x) if self.sees_spread else F.pad(x, (0, 0, 0, 0, 0, 1)))
        features = self.out(self.fc(x.flatten(1)))
        site = self.mapping(None, c)
        return (features * site).sum(dim=1, keepdim=True) / features.shape[1] ** 0.5
