"""A table of several runs side by side, in one metric. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from relay_core.metrics.matrix import ScoreMatrix, table_row
from relay_core.texts import markdown


def compare_markdown(runs: Mapping[str, ScoreMatrix]) -> str:
    """Return a Markdown table with one line a run: average, BWT, FWT and the final value on each site's test set.

    `runs` maps a run's name to its matrix, in the order wanted. A site that a run was not tested on gets a dash.
    Raises ValueError for no run, or for runs of different metrics or units.
    """
    kinds = {matrix.title for matrix in runs.values()}
    if len(kinds) != 1:
        raise ValueError(f"runs to compare need one common metric and unit, not {sorted(kinds) or 'none'}")
    first = next(iter(runs.values()))
    sites = list(dict.fromkeys(site for matrix in runs.values() for site in matrix.columns))
    lines = [f"### {first.title}" + (" (lower is better)" if first.lower_is_better else ""), ""]
    lines += [table_row(["run", "average", "BWT", "FWT", *map(markdown, sites)]), "|---|" + "--:|" * (len(sites) + 3)]
    for name, matrix in runs.items():
        final = dict(zip(matrix.columns, matrix.final(), strict=True))
        lines.append(
            table_row(
                [
                    markdown(name),
                    matrix.text(matrix.average()),
                    matrix.text(matrix.backward_transfer(), signed=True),
                    matrix.text(matrix.forward_transfer(), signed=True),
                    *(matrix.text(final.get(site)) for site in sites),
                ]
            )
        )
    return "\n".join(lines) + "\n"
