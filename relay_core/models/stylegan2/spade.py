"""Spatially adaptive normalisation (Park 2019, arXiv 1903.07291): the label map says how to scale and shift each pixel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from relay_core.models.stylegan2.layers import nearest

HIDDEN = 128


class Spade(nn.Module):
    """`batchnorm(x) * (1 + gamma) + beta`, gamma and beta computed from the label map.

    The batch norm has no parameters of its own; its running statistics are used in eval mode.
    Shape: x (N, C, H, H), label map (N, 1, R, R) -> (N, C, H, H).
    """

    def __init__(self, channels: int, label_channels: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.shared = nn.Conv2d(label_channels, HIDDEN, 3, padding=1)
        self.modulation = nn.Conv2d(HIDDEN, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor, label_map: Tensor) -> Tensor:
        """Normalise and modulate; statistics are computed in float32, the result has x's dtype."""
        hidden = F.relu(self.shared(nearest(label_map, x.shape[-1])))
        gamma, beta = self.modulation(hidden).chunk(2, dim=1)
        return (self.norm(x.float()) * (1 + gamma) + beta).to(x.dtype)
