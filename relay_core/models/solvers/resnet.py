"""ResNet encoders (He 2016, arXiv 1512.03385), with torchvision's parameter names so that its weight files fit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from relay_core.config import PretrainedKwargs, ResNetKwargs, Task
from relay_core.errors import CheckpointError
from relay_core.models.solvers.blocks import make_activation, make_norm
from relay_core.models.solvers.classifier import Classifier

PRETRAINED = "RELAY_PRETRAINED"
"""Environment variable that names the folder of ImageNet weights, `<encoder>.safetensors`."""


class BasicBlock(nn.Module):
    """Apply two 3x3 convolutions, with a shortcut around. Shape: (N, in, H, W) -> (N, width, H/stride, W/stride)."""

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int, norm: str, activation: str, groups: int = 1, base: int = 64
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = make_norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = make_norm(norm, width)
        self.act = make_activation(activation)
        self.downsample = _shortcut(in_channels, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolutions, and add the shortcut."""
        y = self.act(self.bn1(self.conv1(x)))
        return self.act(self.bn2(self.conv2(y)) + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """Apply 1x1, 3x3, 1x1 convolutions, with a shortcut around. Shape: (N, in, H, W) -> (N, 4 width, H/stride, W/stride).

    The 3x3 convolution has `groups` groups (ResNeXt, arXiv 1611.05431) of width * base / 64 maps (wide, arXiv 1605.07146).
    """

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int, norm: str, activation: str, groups: int = 1, base: int = 64
    ) -> None:
        super().__init__()
        inner = width * base // 64 * groups
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = make_norm(norm, inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = make_norm(norm, inner)
        self.conv3 = nn.Conv2d(inner, 4 * width, 1, bias=False)
        self.bn3 = make_norm(norm, 4 * width)
        self.act = make_activation(activation)
        self.downsample = _shortcut(in_channels, 4 * width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolutions, and add the shortcut."""
        y = self.act(self.bn1(self.conv1(x)))
        y = self.act(self.bn2(self.conv2(y)))
        return self.act(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: str) -> nn.Sequential | None:
    """Make the shortcut's convolution where size or channels change; None where the input itself is the shortcut."""
    if stride == 1 and in_channels == out_channels:
        return None
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, make_norm(norm, out_channels))


@dataclass(frozen=True)
class Plan:
    """The make-up of a ResNet: its block, the number of blocks in each stage, and groups and base width of a block."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]
    groups: int = 1
    base: int = 64


PLANS = {
    "resnet18": Plan(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Plan(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Plan(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Plan(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Plan(Bottleneck, (3, 8, 36, 3)),
    "resnext50_32x4d": Plan(Bottleneck, (3, 4, 6, 3), groups=32, base=4),
    "resnext101_32x8d": Plan(Bottleneck, (3, 4, 23, 3), groups=32, base=8),
    "wide_resnet50_2": Plan(Bottleneck, (3, 4, 6, 3), base=128),
    "wide_resnet101_2": Plan(Bottleneck, (3, 4, 23, 3), base=128),
}
"""The ResNets by their names in torchvision."""


class ResNetEncoder(nn.Module):
    """Compute the features of a ResNet at strides 2 (stem), 4 (max-pool), 8, 16, 32 (stages 2 to 4).

    Shape: (N, in_channels, H, W) -> five tensors; `channels` says how many maps each has.

    Raises:
        ValueError: the name, the norm or the activation is unknown.
    """

    def __init__(self, name: str, in_channels: int, norm: str = "batch", activation: str = "relu") -> None:
        super().__init__()
        if name not in PLANS:
            raise ValueError(f"unknown encoder {name!r}; known: {', '.join(PLANS)}")
        plan, self.name = PLANS[name], name
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = make_norm(norm, 64)
        self.act = make_activation(activation)
        self.pool = nn.MaxPool2d(3, 2, 1)
        stages, width_in = [], 64
        for i, depth in enumerate(plan.depths):
            width, layers = 64 * 2**i, []
            for k in range(depth):
                stride = 2 if k == 0 and i > 0 else 1
                layers.append(plan.block(width_in, width, stride, norm, activation, plan.groups, plan.base))
                width_in = width * plan.block.expansion
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = [64, 64] + [64 * 2**i * plan.block.expansion for i in (1, 2, 3)]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the five features, finest first."""
        stem = self.act(self.bn1(self.conv1(x)))
        pooled = self.pool(stem)
        stage2 = self.layer2(self.layer1(pooled))
        stage3 = self.layer3(stage2)
        return [stem, pooled, stage2, stage3, self.layer4(stage3)]

    def start_from(self, settings: PretrainedKwargs) -> None:
        """Load ImageNet weights where the settings ask for them: see their `pretrain` and `pretrain_file`.

        Raises:
            CheckpointError: no file is named, or its weights cannot be read or do not fit.
        """
        if not settings.pretrain:
            return
        folder = os.environ.get(PRETRAINED)
        if settings.pretrain_file is None and folder is None:
            raise CheckpointError(
                f"pretrain: true needs ImageNet weights of {self.name} in a local file: set pretrain_file, or "
                f"{PRETRAINED} to the folder of {self.name}.safetensors (relay convert-checkpoint --pretrained makes one); "
                "--without-pretrained trains on without them"
            )
        self.load_pretrained(Path(settings.pretrain_file or Path(str(folder)) / f"{self.name}.safetensors"))

    def load_pretrained(self, path: Path) -> None:
        """Load ImageNet weights from a local safetensors file in torchvision's key names; its classifier is ignored.

        Raises:
            CheckpointError: the file is missing, unreadable, or made for another network.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = {k: v for k, v in load_file(path).items() if not k.startswith("fc.")}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: pretrained weights cannot be read: {error}") from error
        stem = state.get("conv1.weight")
        stem_shape = self.conv1.weight.shape
        if stem is not None and stem.shape[1] != stem_shape[1]:  # colour weights for grey input: their sum responds alike
            state["conv1.weight"] = stem.sum(1, keepdim=True).expand(stem_shape) / stem_shape[1]
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: these weights do not fit the encoder: {error}") from error


def build(name: str, settings: ResNetKwargs, task: Task, side: int) -> Classifier:
    """Build a ResNet that classifies. Raises CheckpointError where its ImageNet weights cannot be read."""
    encoder = ResNetEncoder(name, settings.in_channels, settings.norm, settings.activation)
    encoder.start_from(settings)
    return Classifier(encoder, settings.num_classes)
