"""ResNets for small images (He 2016, arXiv 1512.03385, section 4.2): 6n + 2 layers, three stages of 16, 32, 64 maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from relay_core.config import CifarResNetKwargs, Task
from relay_core.models.solvers.blocks import make_activation, make_norm
from relay_core.models.solvers.classifier import Classifier


class PlainBlock(nn.Module):
    """Apply two 3x3 convolutions, and a shortcut without parameters: it is subsampled, new maps are zero (paper's option A).

    Shape: (N, in, H, W) -> (N, width, H/stride, W/stride).
    """

    def __init__(self, in_channels: int, width: int, stride: int, norm: str, activation: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = make_norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = make_norm(norm, width)
        self.act = make_activation(activation)
        self.stride, self.more = stride, width - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolutions, and add the shortcut."""
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], [0, 0, 0, 0, self.more // 2, self.more - self.more // 2])
        return self.act(y + x)


class CifarEncoder(nn.Module):
    """Compute the features of the three stages, at strides 1, 2 and 4. Shape: (N, in_channels, H, W) -> three tensors.

    Args:
        in_channels: number of channels of the image.
        depth: number of layers, 6n + 2.
        norm: a name of `blocks.NORMS`.
        activation: a name of `blocks.ACTIVATIONS`.

    Raises:
        ValueError: the depth is not 6n + 2, or a name is unknown.
    """

    def __init__(self, in_channels: int, depth: int, norm: str = "batch", activation: str = "relu") -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"a ResNet for small images has 6n + 2 layers, not {depth}")
        self.channels = [16, 32, 64]
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = make_norm(norm, 16)
        self.act = make_activation(activation)
        width_in, stages = 16, []
        for i, width in enumerate(self.channels):
            blocks = []
            for k in range((depth - 2) // 6):
                blocks.append(PlainBlock(width_in, width, 2 if k == 0 and i > 0 else 1, norm, activation))
                width_in = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the three features, finest first."""
        x = self.act(self.bn1(self.conv1(x)))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def build(name: str, settings: CifarResNetKwargs, task: Task, side: int) -> Classifier:
    """Build the network called `resnet<depth>`."""
    depth = int(name.removeprefix("resnet"))
    encoder = CifarEncoder(settings.in_channels, depth, settings.norm, settings.activation)
    return Classifier(encoder, settings.num_classes)
