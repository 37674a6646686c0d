"""How a model learns at a site, by name."""

import torch

from relay_core.config import STRATEGIES, SiteSettings
from relay_core.errors import RunFileError
from relay_core.strategies.adversarial import FakeSlots
from relay_core.strategies.base import Images, Position, Strategy
from relay_core.strategies.baseline import BaselineStrategy
from relay_core.strategies.private import Privacy
from relay_core.strategies.relay import RelayStrategy


def make_strategy(settings: SiteSettings, device: torch.device) -> Strategy:
    """The strategy that a site's settings name, its networks freshly initialised on `device`.

    Raises:
        RunFileError: its settings state no facts, or deny that its class holds real images.
    """
    made: type[Strategy] = STRATEGIES.load(settings.strategy.name)
    holds = any(vars(parent).get("holds_real_images", False) for parent in made.__mro__)
    if holds and not settings.facts.holds_real_images:
        raise RunFileError(
            f"the strategy {settings.strategy.name!r} is built on one that keeps real images, and its settings state that "
            "it holds none: set holds_real_images in its facts, see docs/extend.md"
        )
    return made(settings, device)


__all__ = [
    "STRATEGIES",
    "BaselineStrategy",
    "FakeSlots",
    "Images",
    "Position",
    "Privacy",
    "RelayStrategy",
    "Strategy",
    "make_strategy",
]
