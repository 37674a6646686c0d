"""How a model learns at a site, by name."""

import torch

from relay_core.config import SiteSettings
from relay_core.config.strategies import STRATEGIES
from relay_core.strategies.base import Images, Position, Strategy


def make_strategy(settings: SiteSettings, device: torch.device) -> Strategy:
    """The strategy that a site's settings name, its networks freshly initialised on `device`."""
    strategy: Strategy = STRATEGIES.load(settings.strategy.name)(settings, device)
    return strategy


__all__ = ["STRATEGIES", "Images", "Position", "Strategy", "make_strategy"]
