"""The coordinator's view: the site x test-set matrix from what the sites reported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from relay_core.bundle.signed_report import SignedReport
from relay_core.config import RunFile
from relay_core.errors import BundleError
from relay_core.metrics import ScoreMatrix, write_matrix

METRICS = ("dice_per_sample", "dice", "accuracy", "hd95")


def collected_matrices(reports: Sequence[SignedReport], run: RunFile, out: Path | None = None) -> dict[str, ScoreMatrix]:
    """Each metric's matrix; a cell that nobody reported is missing, of two reports the later one counts.

    Args:
        reports: verified ones.
        run: the relay's run file, which gives the order of the sites.
        out: folder to write JSON, CSV and PNG to.

    Raises:
        BundleError: `bundle_other_run`.
    """
    cells: dict[tuple[int, str], dict[str, float | str | None]] = {}
    for report in sorted(reports, key=lambda report: report.created_at):
        if report.run != run.digest:
            raise BundleError("bundle_other_run", f"{report.by}'s report is of another run than the one given")
        for name, row in report.scores.items():
            cells[report.task_id, name] = row
    names = {task_id: run.site(task_id).name for task_id in run.all_ids}
    rows = [i for i in run.task_ids if any(task_id == i for task_id, _ in cells)]
    columns = [name for name in names.values() if any(test == name for _, test in cells)]
    made = {}
    for metric in METRICS:
        units = {str(row["hd95_unit"]) for row in cells.values() if "hd95_unit" in row} if metric == "hd95" else set()
        values = [[_number(cells.get((i, name), {}).get(metric)) for name in columns] for i in rows]
        unit = units.pop() if len(units) == 1 else ""
        made[metric] = ScoreMatrix([names[i] for i in rows], columns, metric, values, unit=unit)
        if out is not None:
            write_matrix(made[metric], out, metric)
    return made


def _number(value: float | str | None) -> float | None:
    return float(value) if isinstance(value, int | float) else None
