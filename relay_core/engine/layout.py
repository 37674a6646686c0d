"""The layout of a hand-off: which tensors a site hands over.

It is known from the site's settings alone: nothing is loaded, nothing is allocated.
"""

from __future__ import annotations

import torch

from relay_core.config import SiteSettings
from relay_core.strategies import make_strategy

_NAMES = {torch.float32: "F32", torch.float64: "F32", torch.int64: "I64", torch.float16: "F16"}
"""Type names as a bundle carries them; float64 is handed over as F32: double precision is for training alone."""


def hand_over_layout(settings: SiteSettings) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the type and shape of every tensor that the next site needs, by `network/<name>/<key>`.

    The types are named as safetensors names them.
    """
    meta = torch.device("meta")
    with meta:
        strategy = make_strategy(settings.without_pretraining(), meta)
    return {
        f"network/{name}/{key}": (_NAMES[value.dtype], tuple(value.shape))
        for name in strategy.hand_over()
        for key, value in strategy.networks[name].state_dict().items()
    }
