"""Networks from settings."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from relay_core.config import DoubleGanKwargs, UNetKwargs
from relay_core.models.solvers import ResNetEncoder, UNet
from relay_core.models.stylegan2 import Discriminator, Generator

HALF = {"16": torch.float16, "bf16": torch.bfloat16}


def make_solver(settings: UNetKwargs) -> UNet:
    """The solver; its encoder starts from local ImageNet weights where the settings say so.

    Raises:
        CheckpointError: the weights cannot be read.
    """
    network = UNet(
        settings.in_channels,
        settings.num_classes,
        settings.backbone or "plain",
        settings.bilinear,
        settings.norm,
        settings.activation,
        base_channels=settings.base_channels,
    )
    if settings.pretrain and isinstance(network.encoder, ResNetEncoder):
        network.encoder.load_pretrained(Path(str(settings.pretrain_file)))
    return network


def make_gan(settings: DoubleGanKwargs, half: torch.dtype | None = None) -> dict[str, nn.Module]:
    """The generators and discriminators by name: G_label, G_img, D_label, D_img.

    Args:
        settings: the relay's networks.
        half: type of the upper resolutions' arithmetic; None computes in float32 throughout.
    """
    s = settings
    label, image = s.G_label_kwargs, s.G_img_kwargs
    networks: dict[str, Generator | Discriminator] = {
        "G_label": Generator(
            s.z_label_dim, s.c_label_dim, s.w_label_dim, s.img_resolution, 1,
            mapping_layers=label.mapping_kwargs.num_layers, channel_base=label.synthesis_kwargs.channel_base,
            channel_max=label.synthesis_kwargs.channel_max,
        ),
        "G_img": Generator(
            s.z_img_dim, s.c_img_dim, s.w_img_dim, s.img_resolution, s.img_channels,
            mapping_layers=image.mapping_kwargs.num_layers, channel_base=image.synthesis_kwargs.channel_base,
            channel_max=image.synthesis_kwargs.channel_max, label_channels=1,
        ),
        "D_label": Discriminator(
            s.c_label_dim, s.img_resolution, 1, channel_base=s.D_label_kwargs.channel_base,
            channel_max=s.D_label_kwargs.channel_max,
        ),
        "D_img": Discriminator(
            s.c_img_dim, s.img_resolution, s.img_channels + 1, channel_base=s.D_img_kwargs.channel_base,
            channel_max=s.D_img_kwargs.channel_max,
        ),
    }  # fmt: skip
    if half is not None:
        pyramids = (label.synthesis_kwargs, image.synthesis_kwargs, s.D_label_kwargs, s.D_img_kwargs)
        for network, pyramid in zip(networks.values(), pyramids, strict=True):
            if pyramid.num_fp16_res:
                network.use_half(half, pyramid.num_fp16_res)
    return dict(networks)
