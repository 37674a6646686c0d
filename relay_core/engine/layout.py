"""Which tensors a site hands over, known from its settings alone: nothing is loaded, nothing is allocated."""

from __future__ import annotations

import torch

from relay_core.config import SiteSettings
from relay_core.strategies import make_strategy

_NAMES = {torch.float32: "F32", torch.float64: "F32", torch.int64: "I64", torch.float16: "F16"}
"""As a bundle carries them: double precision is for training alone."""


def hand_over_layout(settings: SiteSettings) -> dict[str, tuple[str, tuple[int, ...]]]:
    """`network/<name>/<key>` -> type (as safetensors names it) and shape of every tensor that the next site needs."""
    meta = torch.device("meta")
    with meta:
        strategy = make_strategy(settings.without_pretraining(), meta)
    return {
        f"network/{name}/{key}": (_NAMES[value.dtype], tuple(value.shape))
        for name in strategy.hand_over()
        for key, value in strategy.networks[name].state_dict().items()
    }
