"""The coordinator's view: the site x test-set matrix from what the sites reported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from relay_core.bundle.manifest import Scores
from relay_core.bundle.signed_report import SignedReport
from relay_core.config import RunFile
from relay_core.errors import BundleError
from relay_core.metrics import ScoreMatrix, score_matrices, write_matrix


def collected_matrices(reports: Sequence[SignedReport], run: RunFile, out: Path | None = None) -> dict[str, ScoreMatrix]:
    """The matrix of each metric of the run's task.

    A cell that nobody reported is missing; of two reports of it the later one counts.

    Args:
        reports: verified ones.
        run: the relay's run file, which gives the order of the sites.
        out: folder to write JSON, CSV and PNG to.

    Raises:
        BundleError: `bundle_other_run`.
    """
    cells: dict[int, Scores] = {}
    for report in sorted(reports, key=lambda report: report.created_at):
        if report.run != run.digest:
            raise BundleError("bundle_other_run", f"{report.by}'s report is of another run than the one given")
        cells.setdefault(report.task_id, {}).update(report.scores)
    names = [run.site(task_id).name for task_id in run.all_ids]
    columns = [name for name in names if any(name in row for row in cells.values())]
    rows = {run.site(i).name: cells[i] for i in run.task_ids if i in cells}
    made = score_matrices(rows, columns, run.site(run.all_ids[0]).data.task)
    if out is not None:
        for key, matrix in made.items():
            write_matrix(matrix, out, key)
    return made
