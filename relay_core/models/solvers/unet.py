"""U-Net (Ronneberger 2015, arXiv 1505.04597) with a plain or a ResNet encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relay_core.config import Task, UNetKwargs
from relay_core.models.solvers.blocks import DoubleConv
from relay_core.models.solvers.classifier import Classifier
from relay_core.models.solvers.resnet import ResNetEncoder


class PlainEncoder(nn.Module):
    """Apply five double convolutions of `base` times 1, 2, 4, 8, 16 maps, max-pooled in between: strides 1, 2, 4, 8, 16."""

    def __init__(self, in_channels: int, base: int, norm: str, activation: str) -> None:
        super().__init__()
        self.channels = [base * 2**i for i in range(5)]
        pairs = zip([in_channels, *self.channels], self.channels, strict=False)
        self.levels = nn.ModuleList(DoubleConv(a, b, norm, activation) for a, b in pairs)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the five features, finest first."""
        features: list[Tensor] = []
        for level in self.levels:
            x = level(F.max_pool2d(x, 2) if features else x)
            features.append(x)
        return features


class Up(nn.Module):
    """Double the size, join the skip connection, convolve twice.

    Shape: x (N, in, H, W), skip (N, skip, 2H, 2W) -> (N, out, 2H, 2W); x is padded where the skip has an odd size.
    """

    def __init__(
        self, in_channels: int, skip_channels: int, out_channels: int, bilinear: bool, norm: str, activation: str
    ) -> None:
        super().__init__()
        self.up = (
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            if bilinear
            else nn.ConvTranspose2d(in_channels, in_channels, 2, stride=2)
        )
        self.conv = DoubleConv(in_channels + skip_channels, out_channels, norm, activation)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return x at twice the size, joined with the skip connection."""
        x = self.up(x)
        dy, dx = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        if dy or dx:
            x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.conv(torch.cat([skip, x], dim=1))


class UNet(nn.Module):
    """Compute class logits for every pixel.

    Shape: (N, in_channels, H, W) -> (N, num_classes, H, W).

    Args:
        in_channels: number of channels of the image.
        num_classes: number of classes, the background included.
        backbone: "plain", or a name of `resnet.PLANS`.
        bilinear: interpolate on the way up; False learns transposed convolutions.
        norm: a name of `blocks.NORMS`.
        activation: a name of `blocks.ACTIVATIONS`; a ResNet encoder keeps its ReLUs.
        base_channels: feature maps of the plain encoder's first level.
        deep_supervision: have a head at coarser levels of the decoder too, which `levels` uses.

    Raises:
        ValueError: the backbone, norm or activation is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        backbone: str = "plain",
        bilinear: bool = False,
        norm: str = "batch",
        activation: str = "lrelu",
        *,
        base_channels: int = 64,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.encoder: PlainEncoder | ResNetEncoder
        if backbone == "plain":
            self.encoder = PlainEncoder(in_channels, base_channels, norm, activation)
            skips = self.encoder.channels[-2::-1]
            widths = skips
        else:  # a ResNet's finest features have stride 2: the image itself is the last skip
            self.encoder = ResNetEncoder(backbone, in_channels, norm)
            skips = [*self.encoder.channels[-2::-1], in_channels]
            widths = [*skips[:-1], 64]
        inputs = [self.encoder.channels[-1], *widths[:-1]]
        self.ups = nn.ModuleList(
            Up(a, skip, b, bilinear, norm, activation) for a, skip, b in zip(inputs, skips, widths, strict=True)
        )
        self.head = nn.Conv2d(widths[-1], num_classes, 1)
        # after all else, so that the same seed draws the other weights alike; the coarsest level is too coarse to label
        coarser = widths[-2:0:-1] if deep_supervision else []
        self.coarser_heads = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for width in coarser)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class logits (N, num_classes, H, W)."""
        return self.head(self._decoded(x)[-1])

    def levels(self, x: Tensor) -> list[Tensor]:
        """Return the class logits of each level that has a head, the finest first: (N, num_classes, H, W), then half, ...

        The first equals what `forward` returns; without deep supervision there is no other.
        """
        decoded = self._decoded(x)[::-1]
        coarser = zip(self.coarser_heads, decoded[1:], strict=False)
        return [self.head(decoded[0]), *(head(y) for head, y in coarser)]

    def _decoded(self, x: Tensor) -> list[Tensor]:
        """Return the features of each level of the decoder, the coarsest first."""
        features = self.encoder(x)
        if len(features) == len(self.ups):
            features = [x, *features]
        decoded = [features.pop()]
        for up in self.ups:
            decoded.append(up(decoded[-1], features.pop()))
        return decoded[1:]

    def features(self, x: Tensor) -> Tensor:
        """Return the deepest features, averaged over pixels: (N, C, H, W) -> (N, D)."""
        return self.encoder(x)[-1].mean(dim=(2, 3))


def build(name: str, settings: UNetKwargs, task: Task, side: int) -> UNet | Classifier:
    """Build a U-Net; for classification, its encoder with a linear layer.

    Raises:
        CheckpointError: the encoder's ImageNet weights cannot be read.
    """
    s = settings
    network = UNet(
        s.in_channels, s.num_classes, s.backbone or "plain", s.bilinear, s.norm, s.activation,
        base_channels=s.base_channels, deep_supervision=s.deep_supervision,
    )  # fmt: skip
    if isinstance(network.encoder, ResNetEncoder):
        network.encoder.start_from(s)
    return network if task == "segmentation" else Classifier(network.encoder, s.num_classes)
