"""How a model learns at a site, by name."""

import torch

from relay_core.config import SiteSettings
from relay_core.strategies.base import Position, Strategy
from relay_core.strategies.baseline import BaselineStrategy
from relay_core.strategies.relay import RelayStrategy

STRATEGIES: dict[str, type[Strategy]] = {cls.name: cls for cls in (RelayStrategy, BaselineStrategy)}


def make_strategy(settings: SiteSettings, device: torch.device) -> Strategy:
    """The strategy that a site's settings name, its networks freshly initialised on `device`."""
    return STRATEGIES[settings.strategy.name](settings, device)


__all__ = ["STRATEGIES", "BaselineStrategy", "Position", "RelayStrategy", "Strategy", "make_strategy"]
