"""Builds the coordinator's score matrices (sites x test sets) from the reports that the sites signed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from relay_core.bundle.manifest import Scores
from relay_core.bundle.signed_report import SignedReport
from relay_core.config import RunFile
from relay_core.errors import BundleError
from relay_core.metrics import ScoreMatrix, score_matrices, write_matrix


def collected_matrices(reports: Sequence[SignedReport], run: RunFile, out: Path | None = None) -> dict[str, ScoreMatrix]:
    """Return the score matrix of each metric of the run's task, by the metric's name.

    A cell that no site reported is missing; where two reports have the same cell, the later one counts.

    Args:
        reports: reports whose signatures have been verified.
        run: the relay's run file, which gives the order of the sites.
        out: the folder to write each matrix to as JSON, CSV and PNG; None writes nothing.

    Raises:
        BundleError: `bundle_other_run` where a report belongs to another run.
    """
    scores_by_task: dict[int, Scores] = {}
    for report in sorted(reports, key=lambda report: report.created_at):
        if report.run != run.digest:
            raise BundleError("bundle_other_run", f"{report.by}'s report is of another run than the one given")
        scores_by_task.setdefault(report.task_id, {}).update(report.scores)
    names = [run.site(task_id).name for task_id in run.all_ids]
    columns = [name for name in names if any(name in row for row in scores_by_task.values())]
    rows = {run.site(i).name: scores_by_task[i] for i in run.task_ids if i in scores_by_task}
    if not rows or not columns:
        raise BundleError("bundle_incomplete", "the reports hold no scores of a test set of this run")
    matrices = score_matrices(rows, columns, run.site(run.all_ids[0]).data.task)
    if out is not None:
        for key, matrix in matrices.items():
            write_matrix(matrix, out, key)
    return matrices
