"""Scores of segmentations, the site x test-set matrix, and what is drawn from them.

Names load on first use, so that reading a matrix never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relay_core.metrics.classification import ClassificationScores
    from relay_core.metrics.compare import compare_markdown
    from relay_core.metrics.figures import heat_map, sample_grid, write_matrix
    from relay_core.metrics.intervals import bootstrap_interval, t_interval
    from relay_core.metrics.matrix import METRICS, ScoreMatrix, metrics_of
    from relay_core.metrics.segmentation import SegmentationScores

__all__ = [
    "METRICS",
    "ClassificationScores",
    "ScoreMatrix",
    "SegmentationScores",
    "bootstrap_interval",
    "compare_markdown",
    "heat_map",
    "metrics_of",
    "sample_grid",
    "t_interval",
    "write_matrix",
]

_HOMES = {
    "METRICS": "matrix",
    "ClassificationScores": "classification",
    "ScoreMatrix": "matrix",
    "SegmentationScores": "segmentation",
    "bootstrap_interval": "intervals",
    "compare_markdown": "compare",
    "heat_map": "figures",
    "metrics_of": "matrix",
    "sample_grid": "figures",
    "t_interval": "intervals",
    "write_matrix": "figures",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
