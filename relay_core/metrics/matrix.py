"""The site x test-set matrix of one metric, and the measures of continual learning that follow from it. Imports no torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relay_core.config import Task
from relay_core.metrics.registry import METRICS, Metric, metrics_of
from relay_core.texts import csv_table, markdown

_BAR = re.compile(r"(?<!\\)\|")
_FORMAT = 1


@dataclass
class ScoreMatrix:
    """The matrix of scores R[t][i], of the model after row t on the test set of column i.

    The rows are one relay by default: each model grew out of the one above. With `sequential` off every row is a model
    of its own (local training), and transfer and forgetting do not exist. A joint model is a single row.

    A value that is None or not finite counts as missing; every number that would need a missing value is None.
    Raises ValueError where names, values and start do not fit each other.
    """

    rows: Sequence[str]
    """Site after whose training the model of each row was tested, in the order of training (T names)."""
    columns: Sequence[str]
    """Names of the test sites (S names, all different)."""
    metric: str
    """Name in the registry of metrics; an unregistered metric is taken for a share of which more is better."""
    values: Sequence[Sequence[float | None]]
    """Scores (T, S); None: missing."""
    start: Sequence[float | None] | None = None
    """Scores (S,) of the untrained model on every test set; None: not known."""
    sequential: bool = True
    unit: str = ""
    """Unit of the values, such as "mm"; empty for shares of 1."""

    def __post_init__(self) -> None:
        self.rows, self.columns = list(self.rows), list(self.columns)
        self.values = [[_finite_or_none(value) for value in row] for row in self.values]
        self.start = None if self.start is None else [_finite_or_none(value) for value in self.start]
        if not self.rows or not self.columns:
            raise ValueError("a score matrix has at least one row and one column")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("the columns of a score matrix need different names")
        if len(self.values) != len(self.rows) or any(len(row) != len(self.columns) for row in self.values):
            raise ValueError(f"values must be {len(self.rows)} rows of {len(self.columns)} numbers")
        if self.start is not None and len(self.start) != len(self.columns):
            raise ValueError(f"start must be {len(self.columns)} numbers, one a test site")

    @property
    def registered(self) -> Metric:
        """The metric's entry in the registry, or a plain one for an unregistered metric."""
        return METRICS.get(self.metric) or Metric(self.metric, (), self.metric, "")

    @property
    def title(self) -> str:
        """Title of the metric, with its unit."""
        return self.registered.title + (f" [{self.unit}]" if self.unit else "")

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value is the better one, as for a distance."""
        return not self.registered.higher_is_better

    def final(self) -> list[float | None]:
        """Return the last row (S,); where every row is a model of its own, the mean over the models."""
        if self.sequential:
            return list(self.values[-1])
        return [_mean(column) for column in zip(*self.values, strict=True)]

    def average(self) -> float | None:
        """Return the mean of `final` over the test sites."""
        return _mean(self.final())

    def average_seen(self) -> list[float | None]:
        """Return for each row (T,) the mean over the sites that its model has seen, that is, trained on so far.

        A site without a test set here has nothing to see. Where every row is a model of its own, it has seen its own site
        alone, or all of them if its name is no test site (a joint model).
        """
        means: list[float | None] = []
        for index, row in enumerate(self.values):
            names = self.rows[: index + 1] if self.sequential else [self.rows[index]]
            joint = self.rows[index] not in self.columns and (not self.sequential or len(self.rows) == 1)
            seen = set(self.columns) if joint else set(names) & set(self.columns)
            means.append(_mean([value for name, value in zip(self.columns, row, strict=True) if name in seen]))
        return means

    def backward_transfer(self) -> float | None:
        """Return BWT = 1/(T-1) sum_{i<T} R[T,i] - R[i,i] (Lopez-Paz & Ranzato 2017, Gradient Episodic Memory, eq. 3).

        In the metric's own sign: for a distance a positive value is a loss. None unless the rows are a sequence of two
        or more different test sites.
        """
        order, last = self._order(), self.values[-1]
        return _mean([_difference(last[i], self.values[t][i]) for t, i in enumerate(order[:-1])])

    def forward_transfer(self) -> float | None:
        """Return FWT = 1/(T-1) sum_{i>1} R[i-1,i] - b_i with b = `start` (Lopez-Paz & Ranzato 2017, eq. 4).

        In the metric's own sign. None without `start`, and where `backward_transfer` is None for want of a sequence.
        """
        if self.start is None:
            return None
        return _mean([_difference(self.values[t][i], self.start[i]) for t, i in enumerate(self._order()[1:])])

    def forgetting(self) -> float | None:
        """Return the mean over i<T of max_{l<T} R[l,i] - R[T,i] (Chaudhry et al. 2018, Riemannian Walk, eq. 3).

        For a distance the smallest value is the best one and the sign is turned, so that positive always means
        forgotten. None where `backward_transfer` is None for want of a sequence.
        """
        sign = -1.0 if self.lower_is_better else 1.0
        losses: list[float | None] = []
        for i in self._order()[:-1]:
            *before, last = (row[i] for row in self.values)
            scores_before = [sign * value for value in before if value is not None]
            losses.append(
                max(scores_before) - sign * last if last is not None and len(scores_before) == len(before) else None
            )
        return _mean(losses)

    def summary(self) -> dict[str, float | None]:
        """Return the four numbers that sum up the matrix, by name."""
        return {
            "average": self.average(),
            "backward_transfer": self.backward_transfer(),
            "forward_transfer": self.forward_transfer(),
            "forgetting": self.forgetting(),
        }

    def to_json(self) -> str:
        """Return JSON text with the matrix and, for readers, its `summary` and `average_seen`."""
        content = {
            "format": _FORMAT,
            "metric": self.metric,
            "title": self.title,
            "unit": self.unit,
            "higher_is_better": not self.lower_is_better,
            "sequential": self.sequential,
            "rows": self.rows,
            "columns": self.columns,
            "values": self.values,
            "start": self.start,
            "average_seen": self.average_seen(),
            "summary": self.summary(),
        }
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ScoreMatrix:
        """Return the matrix that `to_json` wrote; derived numbers are computed anew. Raises ValueError for anything else."""
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"not a score matrix of format {_FORMAT}")
        try:
            keys = ("rows", "columns", "metric", "values", "start", "sequential", "unit")
            return cls(**{key: content[key] for key in keys})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a score matrix: {error}") from error

    def to_csv(self) -> str:
        """Return CSV text: a header, one line a row with the values in full precision, `start` last.

        Missing values are empty.
        """
        rows: list[list[Any]] = [["after", *self.columns]]
        rows += [[name, *row] for name, row in zip(self.rows, self.values, strict=True)]
        if self.start is not None:
            rows.append(["(untrained)", *self.start])
        return csv_table(rows)

    def to_markdown(self) -> str:
        """Return a titled Markdown table, with the mean over the seen sites at each row, and the summary under it."""
        first = "after ↓ test →" if self.sequential else "model ↓ test →"
        lines = [f"### {self.title}" + (" (lower is better)" if self.lower_is_better else ""), ""]
        lines.append(table_row([first, *map(markdown, self.columns), "mean of seen"]))
        lines.append("|---|" + "--:|" * (len(self.columns) + 1))
        if self.start is not None:
            lines.append(table_row(["(untrained)", *map(self.text, self.start), ""]))
        for name, row, seen in zip(self.rows, self.values, self.average_seen(), strict=True):
            lines.append(table_row([markdown(name), *map(self.text, row), self.text(seen)]))
        signed = [(name, self.text(value, signed=True)) for name, value in self.summary().items() if name != "average"]
        lines += ["", f"- average: {self.text(self.average())}"]
        lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in signed]
        return "\n".join(lines) + "\n"

    def text(self, value: float | None, signed: bool = False) -> str:
        """Return a value of this metric as text for people; a dash where it is missing."""
        return self.registered.text(value, signed)

    def _order(self) -> list[int]:
        """Return the column of each row's site; empty where the rows are no sequence of different test sites."""
        is_sequence = self.sequential and set(self.rows) <= set(self.columns) and len(set(self.rows)) == len(self.rows)
        return [list(self.columns).index(name) for name in self.rows] if is_sequence else []


def score_matrices(
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]], columns: Sequence[str], task: Task,
    start: Mapping[str, Mapping[str, Any]] | None = None, sequential: bool = True,
) -> dict[str, ScoreMatrix]:  # fmt: skip
    """Return the site x test-set matrix of each metric of a task, by its name.

    A length that some test sets have in mm and others in pixels is kept apart: one matrix a unit, `hd95_mm` and `hd95_px`,
    each with the test sets that have it in that unit.

    Args:
        rows: for each site, the scores of the model after training there, by test site; what is missing stays empty.
        columns: the test sites.
        task: the task of the models.
        start: the untrained model's scores by test site; None, or one that lacks a column: not known.
        sequential: whether each row's model grew out of the one above.
    """
    matrices: dict[str, ScoreMatrix] = {}
    for metric in metrics_of(task):
        names_by_unit: dict[str, list[str]] = {}
        for name in columns:
            for unit in dict.fromkeys(metric.unit(row[name]) for row in rows.values() if name in row) or [""]:
                names_by_unit.setdefault(unit, []).append(name)
        for unit, names in names_by_unit.items():
            values = [
                [row[name].get(metric.name) if name in row and metric.unit(row[name]) == unit else None for name in names]
                for row in rows.values()
            ]
            start_is_known = start is not None and all(name in start for name in names)
            start_values = [start[name].get(metric.name) for name in names] if start is not None and start_is_known else None
            key = metric.name if len(names_by_unit) == 1 else f"{metric.name}_{unit or 'unknown'}"
            matrices[key] = ScoreMatrix(list(rows), names, metric.name, values, start_values, sequential, unit)
    return matrices


def table_row(cells: Sequence[str]) -> str:
    """Return one line of a Markdown table; a bar or a line break in a cell cannot break the table.

    What a cell holds is Markdown otherwise: names that others gave go through `relay_core.texts.markdown` first.
    """
    return "| " + " | ".join(_BAR.sub(r"\|", " ".join(cell.split())) for cell in cells) + " |"


def _finite_or_none(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _difference(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values; None if there are none or one is missing."""
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present and len(present) == len(values) else None
