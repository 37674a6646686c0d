"""Define the settings of the solvers, the networks that the clinic uses."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from relay_core.config.base import Settings
from relay_core.config.registry import Choice, Entry, Registry

Norm = Literal["batch", "instance", "group", "layer", "none"]
Activation = Literal["relu", "lrelu", "elu", "silu", "gelu"]
Task = Literal["segmentation", "classification"]

IMAGENET_RESNETS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip
CIFAR_RESNETS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202")


class SolverKwargs(Settings):
    """What every solver has."""

    tasks: ClassVar[tuple[Task, ...]] = ("segmentation", "classification")
    """What it can be built for."""

    in_channels: int = Field(default=3, ge=1)
    """Channels of the image."""
    num_classes: int = Field(default=3, ge=2)
    """Classes, background included."""

    @property
    def reduction(self) -> int:
        """Return how many times smaller than the image the deepest feature maps are."""
        return 1


class PretrainedKwargs(SolverKwargs):
    """A solver whose encoder may start from ImageNet weights."""

    pretrain: bool = False
    """Start the encoder from ImageNet weights, read from `pretrain_file`."""
    pretrain_file: str | None = None
    """Local safetensors file with the encoder's weights in torchvision's key names. None: `<encoder>.safetensors` in the
    folder that the environment variable RELAY_PRETRAINED names."""


class UNetKwargs(PretrainedKwargs):
    """U-Net with a plain encoder or a ResNet."""

    backbone: Literal["plain"] | Literal[IMAGENET_RESNETS] | None = None  # type: ignore[valid-type]
    """Encoder; none is `plain`."""
    base_channels: int = Field(default=64, ge=2)
    """Feature maps of the plain encoder's first level; each further level has twice as many."""
    bilinear: bool = False
    """Interpolate on the way up instead of learning transposed convolutions."""
    norm: Norm = "batch"
    """Normalisation."""
    activation: Activation = "lrelu"
    """Activation of the decoder (and of the plain encoder)."""
    deep_supervision: bool = False
    """Learn the labels at coarser levels of the decoder too, all but the coarsest: each at half the weight of the next finer
    one (Isensee 2021, doi 10.1038/s41592-020-01008-z). Segmentation alone; distillation stays at the finest level."""

    @property
    def reduction(self) -> int:
        """Return 16 for the plain encoder, 32 for a ResNet."""
        return 16 if self.backbone in (None, "plain") else 32

    @model_validator(mode="after")
    def _pretrained_weights_are_a_resnets(self) -> Self:
        if self.pretrain and self.backbone in (None, "plain"):
            raise ValueError(
                "pretrain: true needs a ResNet `backbone`, whose ImageNet weights come from a local `pretrain_file`: "
                "nothing is downloaded"
            )
        return self


class ResNetKwargs(PretrainedKwargs):
    """ResNet, ResNeXt or wide ResNet for ImageNet's sizes: classification."""

    tasks = ("classification",)

    norm: Norm = "batch"
    """Normalisation."""
    activation: Activation = "relu"
    """Activation."""

    @property
    def reduction(self) -> int:
        """Return 32."""
        return 32


class CifarResNetKwargs(SolverKwargs):
    """ResNet for small images, as on CIFAR: classification."""

    tasks = ("classification",)

    norm: Norm = "batch"
    """Normalisation."""
    activation: Activation = "relu"
    """Activation."""

    @property
    def reduction(self) -> int:
        """Return 4."""
        return 4


class OwmNetKwargs(SolverKwargs):
    """The small network of orthogonal weight modification: three convolutions, three linear layers, no biases."""

    tasks = ("classification",)

    activation: Activation = "relu"
    """Activation."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of the values that are dropped after each convolution."""


SOLVERS = Registry(
    "network", "relay_core.networks", SolverKwargs,
    {
        "U-Net": Entry(UNetKwargs, "relay_core.models.solvers.unet:build", "U-Net with a plain encoder or a ResNet; "
                       "for classification the encoder alone with a linear layer."),
        **{n: Entry(ResNetKwargs, "relay_core.models.solvers.resnet:build") for n in IMAGENET_RESNETS},
        **{n: Entry(CifarResNetKwargs, "relay_core.models.solvers.cifar:build") for n in CIFAR_RESNETS},
        "OWM-Net": Entry(OwmNetKwargs, "relay_core.models.solvers.owm_net:build"),
    },
)  # fmt: skip
"""Solvers by name."""


class SolverSettings(Choice):
    """A solver."""

    registry = SOLVERS
    kwargs: SerializeAsAny[SolverKwargs] = Field(default_factory=dict, validate_default=True)
