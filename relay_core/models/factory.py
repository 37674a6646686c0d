"""Networks from settings."""

from __future__ import annotations

import torch
from torch import nn

from relay_core.config import SOLVERS, DoubleGanKwargs, GeneratorKwargs, PyramidKwargs, SolverSettings, Task
from relay_core.models.stylegan2 import Discriminator, Generator

HALF = {"16": torch.float16, "bf16": torch.bfloat16}


def make_solver(solver: SolverSettings, task: Task = "segmentation", side: int = 64) -> nn.Module:
    """The solver; its encoder starts from local ImageNet weights where the settings say so.

    Shape: (N, C, side, side) -> (N, K, side, side), or (N, K) for classification; `features` gives (N, D).

    Args:
        solver: which, and its settings.
        task: what for.
        side: of its images in pixels.

    Raises:
        CheckpointError: the weights cannot be read.
    """
    network: nn.Module = SOLVERS.load(solver.name)(solver.name, solver.kwargs, task, side)
    return network


def make_gan(settings: DoubleGanKwargs, half: torch.dtype | None = None) -> dict[str, nn.Module]:
    """The generators and discriminators by name: G_label, G_img, D_label, D_img; for classification the image pair alone.

    A classification's image networks are told the class by their code: site slots, then classes, both one-hot.

    Args:
        settings: the relay's networks.
        half: type of the upper resolutions' arithmetic; None computes in float32 throughout.
    """
    s = settings
    maps = s.task == "segmentation"
    code = s.c_img_dim + (0 if maps else s.label_num_classes)
    generators: dict[str, tuple[GeneratorKwargs, tuple[int, int, int], int]] = {
        "img": (s.G_img_kwargs, (s.z_img_dim, code, s.w_img_dim), s.img_channels)
    }
    discriminators = {"img": (s.D_img_kwargs, code, s.img_channels + maps)}
    if maps:
        sizes = (s.z_label_dim, s.c_label_dim, s.w_label_dim)
        generators = {"label": (s.G_label_kwargs, sizes, 1), **generators}
        discriminators = {"label": (s.D_label_kwargs, s.c_label_dim, 1), **discriminators}
    sides = {"img": s.img_resolution, "label": s.label_side}
    networks: dict[str, Generator | Discriminator] = {}
    for kind, (kwargs, (z, c, w), channels) in generators.items():
        pyramid = kwargs.synthesis_kwargs
        networks[f"G_{kind}"] = made = Generator(
            z, c, w, sides[kind], channels, mapping_layers=kwargs.mapping_kwargs.num_layers,
            channel_base=pyramid.channel_base, channel_max=pyramid.channel_max,
            label_channels=int(maps and kind == "img"),
            classes=s.label_num_classes if kind == "label" and s.label_head == "classes" else 0,
        )  # fmt: skip
        _halve(made, pyramid, half)
    for kind, (pyramid, c, channels) in discriminators.items():
        networks[f"D_{kind}"] = discriminator = Discriminator(
            c,
            sides[kind],
            channels,
            mapping_layers=pyramid.mapping_kwargs.num_layers,
            channel_base=pyramid.channel_base,
            channel_max=pyramid.channel_max,
        )
        _halve(discriminator, pyramid, half)
    return dict(networks)


def _halve(network: Generator | Discriminator, pyramid: PyramidKwargs, half: torch.dtype | None) -> None:
    if half is not None and pyramid.num_fp16_res:
        network.use_half(half, pyramid.num_fp16_res)
