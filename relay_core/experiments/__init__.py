"""Experiments: strategies are compared on equal terms, and generators are scored against real images."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from relay_core.experiments.comparison import Comparison
    from relay_core.experiments.generators import score_generators, scores_text, with_nearest
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        [],
        {
            "comparison": ["Comparison"],
            "generators": ["score_generators", "scores_text", "with_nearest"],
        },
    )
