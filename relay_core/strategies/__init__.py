"""How a model learns at a site, by name."""

import torch

from relay_core.config import STRATEGIES, SiteSettings
from relay_core.strategies.adversarial import FakeSlots
from relay_core.strategies.base import Images, Position, Strategy
from relay_core.strategies.relay import RelayStrategy


def make_strategy(settings: SiteSettings, device: torch.device) -> Strategy:
    """The strategy that a site's settings name, its networks freshly initialised on `device`."""
    strategy: Strategy = STRATEGIES.load(settings.strategy.name)(settings, device)
    return strategy


__all__ = ["STRATEGIES", "FakeSlots", "Images", "Position", "RelayStrategy", "Strategy", "make_strategy"]
