"""Scores of a model on a test set, the site x test-set matrix, and the figures of both. Torch loads on first use."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from relay_core.metrics.appearance import image_statistics, map_statistics
    from relay_core.metrics.classification import ClassificationScores
    from relay_core.metrics.compare import compare_markdown
    from relay_core.metrics.course import Point, cost_to_quality, last_points
    from relay_core.metrics.figures import heat_map, png, sample_grid, write_matrix
    from relay_core.metrics.generated import OnnxFeatures, SolverFeatures, generator_scores
    from relay_core.metrics.intervals import bootstrap_interval, signed_rank, stratified_interval, t_interval
    from relay_core.metrics.matrix import ScoreMatrix, score_matrices, table_row
    from relay_core.metrics.registry import METRICS, WITHHELD, Metric, headline, headlines, is_withheld, metrics_of, task_of
    from relay_core.metrics.replay import agreement, map_scores
    from relay_core.metrics.segmentation import SegmentationScores, scored_as
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        [],
        {
            "appearance": ["image_statistics", "map_statistics"],
            "classification": ["ClassificationScores"],
            "compare": ["compare_markdown"],
            "course": ["Point", "cost_to_quality", "last_points"],
            "figures": ["heat_map", "png", "sample_grid", "write_matrix"],
            "generated": ["OnnxFeatures", "SolverFeatures", "generator_scores"],
            "intervals": ["bootstrap_interval", "signed_rank", "stratified_interval", "t_interval"],
            "matrix": ["ScoreMatrix", "score_matrices", "table_row"],
            "replay": ["agreement", "map_scores"],
            "registry": ["METRICS", "WITHHELD", "Metric", "headline", "headlines", "is_withheld", "metrics_of", "task_of"],
            "segmentation": ["SegmentationScores", "scored_as"],
        },
    )
