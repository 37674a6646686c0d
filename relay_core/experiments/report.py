"""The report of a study: outcomes of strategies and seeds as tables and a figure. Imports no torch."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay_core.files import write_atomically
from relay_core.metrics import ScoreMatrix, t_interval, table_row

DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Outcome:
    """One run of a study."""

    name: str
    """The strategy's."""
    seed: int
    matrices: Mapping[str, ScoreMatrix]
    """By metric, the main one first."""
    seconds: float
    """Of training, all sites; of a site that was interrupted, since it last went on."""

    @property
    def main(self) -> ScoreMatrix:
        """The main metric's."""
        return next(iter(self.matrices.values()))

    def to_json(self) -> dict[str, Any]:
        """Plain form."""
        plain = {metric: json.loads(matrix.to_json()) for metric, matrix in self.matrices.items()}
        return {"strategy": self.name, "seed": self.seed, "seconds": self.seconds, "matrices": plain}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        """The inverse. Raises ValueError, KeyError for anything else."""
        matrices = {metric: ScoreMatrix.from_json(json.dumps(plain)) for metric, plain in data["matrices"].items()}
        return cls(data["strategy"], data["seed"], matrices, data["seconds"])


def own_site(matrix: ScoreMatrix) -> float | None:
    """Mean score of each row's model on its own site's test set, right after training there; None for a joint model."""
    places = {name: i for i, name in enumerate(matrix.columns)}
    found = [matrix.values[t][places[name]] for t, name in enumerate(matrix.rows) if name in places]
    known = [value for value in found if value is not None]
    return statistics.fmean(known) if known and len(known) == len(matrix.rows) else None


def write_report(out: Path, outcomes: Sequence[Outcome], title: str) -> None:
    """Write `study.json`, `study.md` and `study.png`. Raises OSError."""
    plain = {"title": title, "runs": [outcome.to_json() for outcome in outcomes]}
    picture = render_figure(outcomes)
    write_atomically(out / "study.json", json.dumps(plain, indent=1).encode())
    write_atomically(out / "study.png", picture)
    write_atomically(out / "study.md", report_markdown(outcomes, title).encode())


def report_markdown(outcomes: Sequence[Outcome], title: str) -> str:
    """The report, in Markdown: the table, the differences, each strategy's mean matrix, the other metrics."""
    by_name = _by_name(outcomes)
    first = outcomes[0].main
    better = "lower" if first.lower_is_better else "higher"
    lines = [
        f"# Study: {title}", "",
        f"{first.title}, {better} is better. Every strategy has the same run file, budget, solver and augmentation, if its "
        "name does not end in `-plain` (not augmented). Average: over all test sites after the last training; for `local` "
        "over all sites' own models. Own site: each model on the test set of the site that it was just trained on. In "
        "brackets: 95 % interval (t) over seeds. Minutes: of training.", "",
        table_row(["strategy", "average", "each seed", "own site", "BWT", "FWT", "forgetting", "minutes"]),
        "|---|--:|---|--:|--:|--:|--:|--:|",
        *(_row(name, runs) for name, runs in by_name.items()), "",
        *_differences(by_name), "",
        "![averages by strategy](study.png)", "",
    ]  # fmt: skip
    for name, runs in by_name.items():
        lines += [f"## {name}: mean of {len(runs)} seeds", "", _mean_matrix(runs).to_markdown().partition("\n\n")[2]]
    lines += ["## Other metrics", "", *_other_metrics(by_name)]
    return "\n".join(lines).rstrip() + "\n"


def _by_name(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.name, []).append(outcome)
    return found


def _row(name: str, runs: Sequence[Outcome]) -> str:
    matrix = runs[0].main
    averages = [run.main.average() for run in runs]
    each = ", ".join(matrix.text(value) for value in averages)
    more = (
        [own_site(run.main) for run in runs],
        *([getattr(run.main, what)() for run in runs] for what in ("backward_transfer", "forward_transfer", "forgetting")),
    )
    minutes = statistics.fmean(run.seconds for run in runs) / 60
    cells = [_spread(matrix, averages, interval=True), each]
    return table_row(
        [name, *cells, *(_spread(matrix, values, signed=i > 0) for i, values in enumerate(more)), f"{minutes:.1f}"]
    )


def _spread(matrix: ScoreMatrix, values: Sequence[float | None], *, interval: bool = False, signed: bool = False) -> str:
    """Mean and standard deviation, or the interval of the mean."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return DASH
    mean = matrix.text(statistics.fmean(known), signed=signed)
    if len(known) == 1:
        return mean
    if interval and (ends := t_interval(known)):
        return f"**{mean}** ({matrix.text(ends[0])} to {matrix.text(ends[1])})"
    return f"{mean} ± {matrix.text(statistics.stdev(known))}"


def _differences(by_name: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """The first strategy against each other, seed by seed."""
    first, *others = by_name
    reference = {run.seed: run.main for run in by_name[first]}
    lines = []
    for other in others:
        pairs = [(reference[run.seed].average(), run.main.average()) for run in by_name[other] if run.seed in reference]
        known = [a - b for a, b in pairs if a is not None and b is not None]
        if known:
            matrix = by_name[other][0].main
            each = ", ".join(matrix.text(value, signed=True) for value in known)
            ends = t_interval(known)
            spread = (
                f", 95 % interval {matrix.text(ends[0], signed=True)} to {matrix.text(ends[1], signed=True)}" if ends else ""
            )
            mean = matrix.text(statistics.fmean(known), signed=True)
            lines.append(f"- {first} minus {other}: {mean} ({each}{spread})")
    return lines


def _mean_matrix(runs: Sequence[Outcome], metric: str | None = None) -> ScoreMatrix:
    matrices = [run.main if metric is None else run.matrices[metric] for run in runs]
    first = matrices[0]
    if len({(matrix.metric, matrix.unit) for matrix in matrices}) > 1:
        raise ValueError(f"matrices of different metrics or units have no mean: {sorted({m.title for m in matrices})}")
    values = [[_mean([m.values[t][i] for m in matrices]) for i in range(len(first.columns))] for t in range(len(first.rows))]
    starts = [m.start for m in matrices if m.start is not None]
    start = [_mean(list(column)) for column in zip(*starts, strict=True)] if len(starts) == len(matrices) else None
    return ScoreMatrix(first.rows, first.columns, first.metric, values, start, first.sequential, first.unit)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _other_metrics(by_name: Mapping[str, Sequence[Outcome]]) -> list[str]:
    every = [run.matrices for runs in by_name.values() for run in runs]
    metrics = [key for key in every[0] if all(key in matrices for matrices in every)][1:]
    head = [next(iter(by_name.values()))[0].matrices[metric].title for metric in metrics]
    lines = [table_row(["strategy", *head]), "|---|" + "--:|" * len(head)]
    for name, runs in by_name.items():
        averages = {metric: [run.matrices[metric].average() for run in runs] for metric in metrics}
        lines.append(table_row([name, *(_spread(runs[0].matrices[m], values) for m, values in averages.items())]))
    return lines


def render_figure(outcomes: Sequence[Outcome]) -> bytes:
    """A PNG: the average of each run as a dot, a strategy a row, the mean as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    by_name = _by_name(outcomes)
    matrix = outcomes[0].main
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(by_name)), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, runs in enumerate(by_name.values()):
        values = [value for run in runs if (value := run.main.average()) is not None]
        axes.plot(values, [row] * len(values), "o", color="#0072b2", alpha=0.6, markersize=6, markeredgewidth=0)
        if values:
            axes.plot([statistics.fmean(values)] * 2, [row - 0.3, row + 0.3], color="#d55e00", linewidth=2.5)
    axes.set_yticks(range(len(by_name)), by_name)
    axes.set_ylim(len(by_name) - 0.5, -0.5)
    axes.set_xlabel(f"{matrix.title}, average over test sites\na dot: a seed; a line: their mean")
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    out = io.BytesIO()
    canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()
