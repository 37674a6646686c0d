"""Experiments: strategies are compared on equal terms, generators are scored against real images, and sites compared."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from relay_core.experiments.comparison import Comparison
    from relay_core.experiments.generators import score_generators, scores_text, with_nearest
    from relay_core.experiments.sites import compare_sites, sites_text
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        [],
        {
            "comparison": ["Comparison"],
            "generators": ["score_generators", "scores_text", "with_nearest"],
            "sites": ["compare_sites", "sites_text"],
        },
    )
