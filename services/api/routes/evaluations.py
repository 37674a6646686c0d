"""Serve evaluations with their site x test-set matrices."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from relay_core.metrics import metrics_of, task_of
from services.api import pages, schemas
from services.api.deps import ServiceParts, Site, Viewer
from services.api.docs import refusals
from services.api.pages import PageQuery
from services.api.streaming import Fetch, FileQuery, stored, whole
from services.site import Refusal, artifacts, need
from services.site.db import Evaluation

router = APIRouter(prefix="/api/v1/evaluations", tags=["evaluations"])

MetricName = Annotated[
    schemas.Words | schemas.Absent,
    Query(
        description="Which matrix; default: the main metric of the run's task, or the first that there is.",
        examples=["dice_per_sample"],
    ),
]


@router.get("", responses=refusals("cursor_invalid"))
def list_evaluations(
    site: Site,
    caller: Viewer,
    paging: PageQuery,
    run_id: Annotated[schemas.RunId | schemas.Absent, Query()] = None,
    checkpoint_id: Annotated[schemas.CheckpointId | schemas.Absent, Query()] = None,
) -> schemas.Page[schemas.EvaluationSummary]:
    """Evaluations, newest first, without their matrices."""
    filters = {"run_id": run_id, "checkpoint_id": checkpoint_id}
    with site.database.read() as session:
        rows, cursor = pages.read(session, site.settings.key, Evaluation, paging, filters, [Evaluation.id])
    return schemas.Page(items=[schemas.EvaluationSummary(**_summary_fields(row)) for row in rows], next_cursor=cursor)


@router.get("/{evaluation_id}", responses=refusals("not_found"))
def get_evaluation(evaluation_id: schemas.EvaluationId, site: Site, caller: Viewer) -> schemas.Evaluation:
    """One evaluation with its matrices."""
    with site.database.read() as session:
        row = need(session, Evaluation, evaluation_id)
    return schemas.Evaluation(**_summary_fields(row), matrices=row.matrices)


@router.get("/{evaluation_id}/matrix.json", responses=refusals("not_found"))
def matrix_json(
    evaluation_id: schemas.EvaluationId,
    site: Site,
    caller: Viewer,
    metric: Annotated[schemas.Words | schemas.Absent, Query(description="Only this one; default: all.")] = None,
) -> dict[str, Any]:
    """Metric -> its matrix: rows (after which site), columns (test sites), values, figures of transfer."""
    with site.database.read() as session:
        matrices = need(session, Evaluation, evaluation_id).matrices
    if metric is None:
        return matrices
    if metric not in matrices:
        raise _no_matrix(evaluation_id, sorted(matrices))
    return {metric: matrices[metric]}


@router.get(
    "/{evaluation_id}/matrix.csv",
    response_class=Response,
    responses={
        **whole("The matrix.", "text/csv", {"type": "string"}),
        **refusals("not_found", "artifact_damaged"),
    },
)
def matrix_csv(
    evaluation_id: schemas.EvaluationId, site: Site, caller: Viewer, asked: FileQuery, metric: MetricName = None
) -> Response:
    """A metric's matrix as a table."""
    table = _attachment(site, evaluation_id, metric, "csv")
    fetch = Fetch(caller, f"{evaluation_id}/matrix.csv")
    return stored(site, table, "text/csv", asked, f"{evaluation_id}.csv", fetch)


@router.get(
    "/{evaluation_id}/matrix.png",
    response_class=Response,
    responses={
        **whole("The matrix.", "image/png"),
        **refusals("not_found", "artifact_damaged"),
    },
)
def matrix_png(
    evaluation_id: schemas.EvaluationId, site: Site, caller: Viewer, asked: FileQuery, metric: MetricName = None
) -> Response:
    """A metric's matrix as a picture."""
    picture = _attachment(site, evaluation_id, metric, "png")
    return stored(site, picture, "image/png", asked, fetch=Fetch(caller, f"{evaluation_id}/matrix.png"))


@router.get(
    "/{evaluation_id}/report.json",
    response_class=Response,
    responses={
        **whole("The signed report.", "application/json", {"type": "object"}),
        **refusals("not_found", "artifact_damaged"),
    },
)
def get_report(evaluation_id: schemas.EvaluationId, site: Site, caller: Viewer, asked: FileQuery) -> Response:
    """An evaluation's signed report, metrics only, for the coordinator of the relay; POST /api/v1/exports makes it."""
    with site.database.read() as session:
        report = artifacts.attached(session, need(session, Evaluation, evaluation_id).id).get("report.json")
    if report is None:
        raise Refusal("not_found", f"{evaluation_id} was not signed yet: POST it to /api/v1/exports")
    fetch = Fetch(caller, f"{evaluation_id}/report.json")
    return stored(site, report, "application/json", asked, f"{evaluation_id}.json", fetch)


def _attachment(site: ServiceParts, evaluation_id: str, metric: str | None, kind: str) -> artifacts.Artifact:
    with site.database.read() as session:
        row = need(session, Evaluation, evaluation_id)
        attachments = artifacts.attached(session, row.id)
    if metric is None:
        main_metric = metrics_of(task_of(row.matrices))[0].name
        metric = main_metric if main_metric in row.matrices else min(row.matrices, default="none")
    if f"{metric}.{kind}" not in attachments:
        raise _no_matrix(evaluation_id, [name.removesuffix(f".{kind}") for name in attachments if name.endswith(f".{kind}")])
    return attachments[f"{metric}.{kind}"]


def _no_matrix(evaluation_id: str, metrics: list[str]) -> Refusal:
    return Refusal("not_found", f"metric: {evaluation_id} has {', '.join(metrics) or 'no such matrix'}")


def _summary_fields(row: Evaluation) -> dict[str, Any]:
    names = ("id", "job_id", "run_id", "checkpoint_id", "created_at")
    return {**{name: getattr(row, name) for name in names}, "metrics": sorted(row.matrices)}
