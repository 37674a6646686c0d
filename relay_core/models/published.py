"""The published implementation's parameter names, and ours: one map, for tests and for moving checkpoints over.

Names are facts of the published checkpoints. Buffers that follow from the settings (resample filters) and the solver
encoder's unused classifier are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

SKIPPED = re.compile(r"\.resample_filter$|^encoder\.fc\.|^fid_")

_GENERATOR = [
    (r"^mapping\.fc(\d+)\.", r"mapping.layers.\1."),
    (r"\.torgb\.", ".to_image."),
    (r"\.spade\.param_free_norm\.", ".spade.norm."),
    (r"\.spade\.mlp_shared\.0\.", ".spade.shared."),
    (r"\.spade\.mlp_(gamma|beta)\.", r".spade.modulation.\1."),
]
_DISCRIMINATOR = [
    (r"^mapping\.fc(\d+)\.", r"mapping.layers.\1."),
    (r"^b4\.", ""),
    (r"^b\d+\.fromrgb\.", "from_image."),
]
_UNET = [
    (r"^inc\.", "encoder.levels.0."),  # a plain encoder: its names are the usual ones, seen in no file yet
    (r"^down(\d+)\.maxpool_conv\.1\.", r"encoder.levels.\1."),
    (r"^outc\.conv\.", "head."),
    (r"\.double_conv\.0\.", ".conv1."),
    (r"\.double_conv\.1\.", ".norm1."),
    (r"\.double_conv\.3\.", ".conv2."),
    (r"\.double_conv\.4\.", ".norm2."),
]


def _rename(state: Mapping[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state.items():
        if SKIPPED.search(key):
            continue
        name = key
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def _resolutions(state: Mapping[str, Tensor]) -> list[int]:
    found = {int(m.group(1)) for key in state if (m := re.search(r"(?:^|\.)b(\d+)\.", key))}
    return sorted(found)


def generator_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of our `Generator` from a published one (`G_img.*` or `G_label.*`, prefix removed)."""
    blocks = [(rf"^synthesis\.b{r}\.", f"blocks.{i}.") for i, r in enumerate(_resolutions(state))]
    ours = _rename(state, [*blocks, *_GENERATOR])
    for key in [k for k in ours if ".spade.modulation.gamma." in k and k.replace(".gamma.", ".beta.") in ours]:
        gamma, beta = ours.pop(key), ours.pop(key.replace(".gamma.", ".beta."))
        ours[key.replace(".gamma.", ".")] = torch.cat([gamma, beta])
    return ours


def discriminator_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of our `Discriminator` from a published one (`D_img.*` or `D_label.*`, prefix removed)."""
    sides = _resolutions(state)[::-1][:-1]
    blocks = [(rf"^b{r}\.(?!fromrgb)", f"blocks.{i}.") for i, r in enumerate(sides)]
    return _rename(state, [*blocks, *_DISCRIMINATOR])


def unet_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of our `UNet` from a published solver (`solver.*`, prefix removed)."""
    ups = [(rf"^up{i + 1}\.", f"ups.{i}.") for i in range(5)]
    return _rename(state, [*ups, *_UNET])


def classifier_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of our `Classifier` from a published solver: a ResNet, or a U-Net whose encoder classifies.

    The names are torchvision's, and for ResNets of small images the usual ones; no such file was seen yet.
    """
    ours: dict[str, Tensor] = {}
    stages = not any(re.match(r"(encoder\.)?layer4\.", key) for key in state)
    for key, value in state.items():
        name = key.removeprefix("encoder.")
        if stages:  # a ResNet of small images has three
            name = re.sub(r"^layer([123])\.", lambda m: f"stages.{int(m[1]) - 1}.", name)
        head = re.match(r"(fc|linear)\.", name)
        ours[f"head.{name[head.end() :]}" if head else f"encoder.{name}"] = value
    return ours


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries below `prefix.`, without it."""
    return {k.removeprefix(prefix + "."): v for k, v in state.items() if k.startswith(prefix + ".")}
