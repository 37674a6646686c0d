"""Read the metrics of a job as series with few enough points to draw; the database thins them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, and_, case, cast, func, literal, or_, select
from sqlalchemy.orm import Session

from services.api import schemas
from services.site.db import Metric

_SERIES = (Metric.site, Metric.name)


def conditions(
    job_id: str, equal: Mapping[str, str | None], first: int | None = None, last: int | None = None
) -> list[ColumnElement[bool]]:
    """Return which rows are asked for.

    Args:
        job_id: id of the job.
        equal: column -> value that it must have; None: any value.
        first: the first step; None: from the beginning.
        last: the last step; None: to the end.
    """
    matching = [getattr(Metric, key) == value for key, value in equal.items() if value is not None]
    if first is not None:
        matching.append(Metric.step >= first)
    if last is not None:
        matching.append(Metric.step <= last)
    return [Metric.job_id == job_id, *matching]


def points(session: Session, matching: Sequence[ColumnElement[bool]], most: int) -> list[schemas.Series]:
    """Read series of at most `most` points, thinned by `extremes` where one has more: most jobs have not."""
    longest = session.scalar(select(func.count()).where(*matching).group_by(*_SERIES).order_by(func.count().desc()).limit(1))
    if longest is None:
        return []
    whole = select(*_SERIES, Metric.step, Metric.value).where(*matching).order_by(*_SERIES, Metric.step)
    return collect(session.execute(extremes(matching, most) if longest > most else whole))


def extremes(matching: Sequence[ColumnElement[bool]], most: int) -> Select[Any]:
    """Build the query for the lowest and the highest point of each stretch of steps: no spike is lost.

    A series of more than `most` points is cut into (most - 1) // 2 stretches of equally many steps; its newest point is
    always there. All points are measured ones, none is a mean.
    """
    first, last, count = (
        function.over(partition_by=_SERIES) for function in (func.min(Metric.step), func.max(Metric.step), func.count())
    )
    columns = first.label("first"), last.label("last"), count.label("all")
    a = select(*_SERIES, Metric.step, Metric.value, *columns).where(*matching).subquery().c
    since, length = cast(a.step - a.first, BigInteger), a.last - a.first + 1
    stretch = case((a["all"] <= most, since), else_=since * ((most - 1) // 2) // length)
    b = select(a.site, a.name, a.step, a.value, a.last, a["all"], stretch.label("stretch")).subquery().c
    place = b.site, b.name, b.stretch
    low = func.row_number().over(partition_by=place, order_by=(b.value, b.step)).label("low")
    high = func.row_number().over(partition_by=place, order_by=(b.value.desc(), b.step)).label("high")
    c = select(b.site, b.name, b.step, b.value, b.last, b["all"], low, high).subquery().c
    extreme = and_(or_(c.low == 1, c.high == 1), or_(c["all"] <= most, literal(most > 2)))
    return (
        select(c.site, c.name, c.step, c.value).where(or_(c.step == c.last, extreme)).order_by(c.site, c.name, c.step)
    )  # fmt: skip


def evenly(matching: Sequence[ColumnElement[bool]], most: int) -> Select[Any]:
    """Build the query for at most `most` evenly spaced points of each series, counted from its end: the newest stays."""
    from_end = func.row_number().over(partition_by=_SERIES, order_by=Metric.step.desc()) - 1
    count = func.count().over(partition_by=_SERIES)
    numbered = select(*_SERIES, Metric.step, Metric.value, from_end.label("back"), count.label("all")).where(*matching)
    c = numbered.subquery().c
    stride = (c["all"] + most - 1) // most
    return select(c.site, c.name, c.step, c.value).where(c.back % stride == 0).order_by(c.site, c.name, c.step)


def collect(rows: Iterable[Any]) -> list[schemas.Series]:
    """Return the series that rows of (site, name, step, value) belong to, in the order in which they come."""
    points: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
    for site, name, step, value in rows:
        steps, values = points.setdefault((site, name), ([], []))
        steps.append(step)
        values.append(value)
    return [schemas.Series(site=site, name=name, steps=s, values=v) for (site, name), (s, v) in points.items()]
