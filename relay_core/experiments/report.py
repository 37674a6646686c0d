"""The report of a comparison: the outcomes of strategies and seeds as tables and a figure. Imports no torch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from relay_core.config import SEQUENCES, STRATEGIES, strategy_facts
from relay_core.files import write_atomically
from relay_core.metrics import (
    Point,
    ScoreMatrix,
    cost_to_quality,
    signed_rank,
    stratified_interval,
    t_interval,
    table_row,
)
from relay_core.texts import markdown

DASH = "\N{EN DASH}"
PLAIN = "-plain"
"""Ending of a strategy's name that switches its augmentation off."""


@dataclass(frozen=True)
class Outcome:
    """The result of one run of a comparison: one strategy with one seed."""

    name: str
    """The strategy, as the entry of the comparison names it."""
    seed: int
    matrices: Mapping[str, ScoreMatrix]
    """Score matrices by metric, the main metric first."""
    seconds: float
    """Training time of all sites in seconds, without evaluations."""
    operations: float = 0.0
    """Floating-point operations of the training at all sites (`relay_core.engine.Course` says which); 0: not counted."""
    course: Sequence[Point] = ()
    """What the training had cost, and what the solver scored, along the way."""
    trained: Sequence[str] = ()
    """Names of the sites that were trained; empty: all that were tested."""
    subjects: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Scores of the subjects of each test set after the last training; empty where each site has a model of its own."""

    @property
    def main(self) -> ScoreMatrix:
        """Score matrix of the main metric."""
        return next(iter(self.matrices.values()))

    def finals(self, matrix: ScoreMatrix, external: bool = False) -> list[float | None]:
        """Return the scores after the last training on the trained sites, or on the `external` ones, never trained."""
        pairs = zip(matrix.columns, matrix.final(), strict=True)
        return [value for name, value in pairs if (bool(self.trained) and name not in self.trained) == external]

    def average(self, matrix: ScoreMatrix | None = None) -> float | None:
        """Return the mean of `finals`, by the main metric or another one."""
        return _mean(self.finals(matrix or self.main))

    def worst(self) -> float | None:
        """Return the worst of `finals`."""
        values = self.finals(self.main)
        present = [value for value in values if value is not None]
        if not values or len(present) < len(values):
            return None
        return max(present) if self.main.lower_is_better else min(present)

    def external(self) -> float | None:
        """Return the mean over the external sites; None where there are none."""
        return _mean(self.finals(self.main, external=True))

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain data, safe for JSON."""
        plain = {metric: json.loads(matrix.to_json()) for metric, matrix in self.matrices.items()}
        course = [asdict(point) for point in self.course]
        cost = {"seconds": self.seconds, "operations": self.operations, "course": course}
        return {"strategy": self.name, "seed": self.seed, **cost, "trained": list(self.trained), "matrices": plain,
                "subjects": {site: list(scores) for site, scores in self.subjects.items()}}  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        """Return the outcome that `to_json` gave as plain data. Raises ValueError or KeyError for anything else."""
        matrices = {metric: ScoreMatrix.from_json(json.dumps(plain)) for metric, plain in data["matrices"].items()}
        course = [Point(**point) for point in data.get("course", [])]
        return cls(
            data["strategy"], data["seed"], matrices, data["seconds"], data.get("operations", 0.0), course,
            data.get("trained", []), data.get("subjects", {}),
        )  # fmt: skip


def own_site(matrix: ScoreMatrix) -> float | None:
    """Return the mean score of each row's model on the test set of its own site, right after training there.

    A joint model has no site of its own: None.
    """
    places = {name: i for i, name in enumerate(matrix.columns)}
    scores = [matrix.values[t][places[name]] for t, name in enumerate(matrix.rows) if name in places]
    present = [value for value in scores if value is not None]
    return statistics.fmean(present) if present and len(present) == len(matrix.rows) else None


def write_report(out: Path, outcomes: Sequence[Outcome], title: str) -> None:
    """Write `study.json`, `study.md`, `study.png` and `cost.png`. Raises OSError."""
    plain = {"title": title, "runs": [outcome.to_json() for outcome in outcomes]}
    picture, cost = render_figure(outcomes), render_cost(outcomes)
    write_atomically(out / "study.json", json.dumps(plain, indent=1).encode())
    write_atomically(out / "study.png", picture)
    write_atomically(out / "cost.png", cost)
    write_atomically(out / "study.md", report_markdown(outcomes, title).encode())


def report_markdown(outcomes: Sequence[Outcome], title: str) -> str:
    """Return the report as Markdown: the table, the differences, each strategy's mean matrix, the other metrics."""
    by_name = _by_name(outcomes)
    first = outcomes[0].main
    better = "lower" if first.lower_is_better else "higher"
    lines = [
        f"# Study: {markdown(title)}", "",
        f"{first.title}, {better} is better. Every strategy has the same run file, budget, solver and augmentation, if its "
        "name does not end in `-plain` (not augmented). Average, worst site: over the test sets of the trained sites after "
        "the last training; for `local` means over the sites' own models. External: over sites that were never trained. Own "
        "site: each model on the test set of the site that it was just trained on. In brackets: 95 % interval (t) over "
        "seeds. By subjects: the mean over seeds of each subject's difference, its bootstrap interval over the subjects of "
        "each site, and the p of Wilcoxon's signed-rank test (two-sided, not corrected for the number of comparisons). "
        "Minutes: of training. PFLOP: 10^15 floating-point operations of its matrix products and convolutions, "
        "forward, backward and in regularisations.", "",
        table_row(["strategy", "average", "each seed", "worst site", "external", "own site", "BWT", "FWT", "forgetting",
                   "minutes", "PFLOP"]),
        "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(_row(name, runs) for name, runs in by_name.items()), "",
        *_differences(by_name), "",
        *_at_once(by_name),
        "![averages by strategy](study.png)", "",
        "![average over the sites seen so far, against cost](cost.png)", "",
    ]  # fmt: skip
    for name, runs in by_name.items():
        lines += [
            f"## {markdown(name)}: mean of {len(runs)} seeds",
            "",
            _mean_matrix(runs).to_markdown().partition("\n\n")[2],
        ]
    lines += ["## Other metrics", "", *_other_metrics(by_name)]
    return "\n".join(lines).rstrip() + "\n"


def _by_name(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    by_name: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_name.setdefault(outcome.name, []).append(outcome)
    return by_name


def _row(name: str, runs: Sequence[Outcome]) -> str:
    matrix = runs[0].main
    averages = [run.average() for run in runs]
    each_seed = ", ".join(matrix.text(value) for value in averages)
    further = (
        [run.worst() for run in runs],
        [run.external() for run in runs],
        [own_site(run.main) for run in runs],
        *(
            [getattr(run.main, method)() for run in runs]
            for method in ("backward_transfer", "forward_transfer", "forgetting")
        ),
    )
    minutes = statistics.fmean(run.seconds for run in runs) / 60
    return table_row(
        [
            markdown(name),
            _spread(matrix, averages, interval=True),
            each_seed,
            *(_spread(matrix, values, signed=i > 2) for i, values in enumerate(further)),
            f"{minutes:.1f}",
            f"{statistics.fmean(run.operations for run in runs) / 1e15:.3g}"
            if all(run.operations for run in runs)
            else DASH,
        ]
    )


def _spread(matrix: ScoreMatrix, values: Sequence[float | None], *, interval: bool = False, signed: bool = False) -> str:
    """Return the mean as text, with the standard deviation or the 95 % interval; a dash where a value is missing."""
    present = [value for value in values if value is not None]
    if not present or len(present) < len(values):
        return DASH
    mean = matrix.text(statistics.fmean(present), signed=signed)
    if len(present) == 1:
        return mean
    if interval and (ends := t_interval(present)):
        return f"**{mean}** ({matrix.text(ends[0])} to {matrix.text(ends[1])})"
    return f"{mean} ± {matrix.text(statistics.stdev(present))}"


def _differences(by_name: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Return a line for each other strategy: how much the first one's averages differ from its, seed by seed."""
    first, *other_names = by_name
    reference = {run.seed: run for run in by_name[first]}
    lines = []
    for name in other_names:
        pairs = [(reference[run.seed].average(), run.average()) for run in by_name[name] if run.seed in reference]
        differences = [a - b for a, b in pairs if a is not None and b is not None]
        if differences:
            matrix = by_name[name][0].main
            each_seed = ", ".join(matrix.text(value, signed=True) for value in differences)
            ends = t_interval(differences)
            spread = (
                f", 95 % interval {matrix.text(ends[0], signed=True)} to {matrix.text(ends[1], signed=True)}" if ends else ""
            )
            mean = matrix.text(statistics.fmean(differences), signed=True)
            lines.append(
                f"- {markdown(first)} minus {markdown(name)}: {mean} ({each_seed}{spread}){_cost(by_name, first, name)}"
                f"{_over_subjects(by_name[first], by_name[name])}"
            )
    return lines


def _over_subjects(ones: Sequence[Outcome], others: Sequence[Outcome]) -> str:
    """Say how two strategies differ subject by subject, as a mean over the seeds that both have; nothing where none compare.

    The interval is a bootstrap over subjects within their sites, which count alike; the test is Wilcoxon's signed-rank test.
    """
    known = {run.seed: run for run in others}
    pairs = [(run, known[run.seed]) for run in ones if run.seed in known]
    sites = [site for site in ones[0].subjects if site in (ones[0].trained or ones[0].subjects)]
    counts = {site: len(ones[0].subjects[site]) for site in sites}
    if (
        not pairs
        or not sites
        or any(len(run.subjects.get(site, ())) != counts[site] for p in pairs for run in p for site in sites)
    ):
        return ""
    by_site = [
        [statistics.fmean(a.subjects[site][i] - b.subjects[site][i] for a, b in pairs) for i in range(counts[site])]
        for site in sites
    ]
    interval = stratified_interval(by_site)
    if interval is None:
        return ""
    matrix, p = ones[0].main, signed_rank([value for values in by_site for value in values])
    mean, low, high = (
        matrix.text(value, signed=True) for value in (statistics.fmean(map(statistics.fmean, by_site)), *interval)
    )
    what = "" if matrix.metric.startswith("dice") else "right answers "
    return (
        f"; {what}by {sum(counts.values())} subjects {mean}, 95 % interval {low} to {high}, "
        f"p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
    )


def _cost(by_name: Mapping[str, Sequence[Outcome]], one: str, other: str) -> str:
    """Return how many times what `other` costs `one` costs, seed by seed, the median; nothing where that is not known."""
    known = {run.seed: run for run in by_name[other] if run.seconds and run.operations}
    pairs = [(run, known[run.seed]) for run in by_name[one] if run.seed in known and run.operations]
    if not pairs:
        return ""
    seconds, operations = (
        statistics.median(getattr(a, what) / getattr(b, what) for a, b in pairs) for what in ("seconds", "operations")
    )
    return f", at {seconds:.2f} times its seconds and {operations:.2f} times its operations"


def _mean_matrix(runs: Sequence[Outcome], metric: str | None = None) -> ScoreMatrix:
    matrices = [run.main if metric is None else run.matrices[metric] for run in runs]
    first = matrices[0]
    if len({(matrix.metric, matrix.unit) for matrix in matrices}) > 1:
        raise ValueError(f"matrices of different metrics or units have no mean: {sorted({m.title for m in matrices})}")
    values = [[_mean([m.values[t][i] for m in matrices]) for i in range(len(first.columns))] for t in range(len(first.rows))]
    starts = [m.start for m in matrices if m.start is not None]
    start = [_mean(list(column)) for column in zip(*starts, strict=True)] if len(starts) == len(matrices) else None
    return ScoreMatrix(first.rows, first.columns, first.metric, values, start, first.sequential, first.unit)


def _at_once(by_name: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Say which strategies no hospitals without a network can use, though they are on the table."""
    known = {*STRATEGIES, *SEQUENCES}
    first_words = {name: name.split()[0].removesuffix(PLAIN) for name in by_name}
    names = [name for name, word in first_words.items() if word in known and strategy_facts(word).sequence == "at_once"]
    if not names:
        return []
    return [
        f"{', '.join(map(markdown, names))}: trained at all sites at once, with all images in one place or a network.",
        "",
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.fmean(present) if present and len(present) == len(values) else None


def _other_metrics(by_name: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """A table of the other metrics; a column a unit, so that millimetres and pixels are never averaged together."""
    others = [list(run.matrices.values())[1:] for runs in by_name.values() for run in runs]
    titles = list(dict.fromkeys(matrix.title for matrices in others for matrix in matrices))
    lines = [table_row(["strategy", *titles]), "|---|" + "--:|" * len(titles)]
    for name, runs in by_name.items():
        cells = []
        for title in titles:
            found = [(run, matrix) for run in runs for matrix in run.matrices.values() if matrix.title == title]
            whole = len(found) == len(runs)
            cells.append(_spread(found[0][1], [run.average(matrix) for run, matrix in found]) if whole else DASH)
        lines.append(table_row([markdown(name), *cells]))
    return lines


def render_cost(outcomes: Sequence[Outcome]) -> bytes:
    """Return a PNG file as bytes: the average over the sites seen so far against operations and minutes, a line a run."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    from relay_core.metrics import png

    by_name = _by_name(outcomes)
    figure = Figure(figsize=(10, 4.5), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    colours, lines = colormaps["tab10"].colors, ("-", "--", ":", "-.")  # type: ignore[attr-defined]
    for i, (name, runs) in enumerate(by_name.items()):
        for j, run in enumerate(runs):
            course = [(s / 60, count / 1e15, mean) for s, count, mean in cost_to_quality(run.course) if mean is not None]
            for axes, x in zip(panels, (1, 0), strict=True):
                axes.plot(
                    [point[x] for point in course], [point[2] for point in course], lines[i // 10 % 4], marker="o",
                    color=colours[i % 10], markersize=3, linewidth=1.2, alpha=0.8, label="_" if j else name,
                )  # fmt: skip
    for axes, title in zip(panels, ("PFLOP of training", "minutes of training"), strict=True):
        axes.set_xlabel(title)
        axes.grid(color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"{outcomes[0].main.title}, average over the sites seen so far")
    for text in panels[1].legend(fontsize=7, frameon=False).get_texts():
        text.set_parse_math(False)
    return png(figure)


def render_figure(outcomes: Sequence[Outcome]) -> bytes:
    """Return a PNG file as bytes: one row a strategy, a dot for the average of each run, a line for their mean."""
    from matplotlib.figure import Figure

    from relay_core.metrics import png

    by_name = _by_name(outcomes)
    matrix = outcomes[0].main
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(by_name)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for row, runs in enumerate(by_name.values()):
        values = [value for run in runs if (value := run.average()) is not None]
        axes.plot(values, [row] * len(values), "o", color="#0072b2", alpha=0.6, markersize=6, markeredgewidth=0)
        if values:
            axes.plot([statistics.fmean(values)] * 2, [row - 0.3, row + 0.3], color="#d55e00", linewidth=2.5)
    axes.set_yticks(range(len(by_name)), by_name, parse_math=False)
    axes.set_ylim(len(by_name) - 0.5, -0.5)
    axes.set_xlabel(f"{matrix.title}, average over test sites\na dot: a seed; a line: their mean")
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return png(figure)
