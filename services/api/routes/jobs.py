"""Serve jobs, which are submitted once, listed, cancelled and retried."""

from __future__ import annotations

from typing import Annotated, assert_never

from fastapi import APIRouter, Body, Query, Response
from sqlalchemy.orm import Session

from services.api import pages, schemas
from services.api.deps import IdempotencyKey, Operator, Site, Viewer, need_room
from services.api.docs import LOCATION, REPLAYED, SIGNERS, changes, refusals, success
from services.api.pages import PageQuery
from services.site import JobPlan, job_plans, jobs, need, trust
from services.site.db import Job

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])


@router.post(
    "",
    status_code=202,
    responses={
        **success(202, "Accepted: it is in the queue, and is not lost.", headers=LOCATION | REPLAYED),
        **changes(
            "run_file_invalid", "idempotency_key_missing", "idempotency_key_reused", "not_found", "dataset_missing",
            "checkpoint_invalid", "conflict", "bundle_incomplete", *SIGNERS, "device_unavailable", "queue_full",
            "storage_full", "volume_away",
        ),
    },
)  # fmt: skip
def submit_job(
    body: Annotated[schemas.JobRequest, Body()], key: IdempotencyKey, site: Site, caller: Operator, response: Response
) -> schemas.Job:
    """Queue a job: train, evaluate, samples, preflight, export_onnx, predict, privacy_audit, compare_sites.

    Exports and imports have addresses of their own.
    """
    request_body = body.model_dump(mode="json")
    if request_body.get("until") == "end":  # requests that are older than the field are repeated by their key
        del request_body["until"]
    with site.database.write() as session:
        job = jobs.replayed(session, caller.actor, key, request_body)
        is_new = job is None
        if job is None:
            need_room(site)
            plan = _plan(session, body)
            job_plans.check_gpus(session, plan.gpus, site.settings.lately)
            job, is_new = jobs.submit(
                session, kind=body.kind, params=plan.params, actor=caller.actor, key=key, body=request_body, gpus=plan.gpus,
                run_id=plan.run_id, checkpoint_id=plan.checkpoint_id, queue_limit=site.settings.queue_limit,
            )  # fmt: skip
        submitted = schemas.Job.model_validate(job)
    if is_new:
        site.doorbell.ring(submitted.id)
    else:
        response.headers["Idempotency-Replayed"] = "true"
    response.headers["Location"] = f"{router.prefix}/{submitted.id}"
    return submitted


def _plan(session: Session, body: schemas.JobRequest) -> JobPlan:  # noqa: PLR0911 (one for each kind)
    match body:
        case schemas.TrainRequest():
            return job_plans.train(
                session, body.run_id, site=body.site, datasets=_by_task_id(body.datasets),
                checkpoint_id=body.checkpoint_id, until=body.until, gpus=body.gpus,
            )  # fmt: skip
        case schemas.EvaluateRequest():
            return job_plans.evaluate(session, body.checkpoint_id, datasets=_by_task_id(body.datasets))
        case schemas.SamplesRequest():
            return job_plans.samples(session, body.checkpoint_id, per_site=body.per_site)
        case schemas.CompareSitesRequest():
            return job_plans.compare_sites(
                session, body.checkpoint_id, datasets=_by_task_id(body.datasets), images=body.images
            )
        case schemas.PreflightRequest():
            return job_plans.preflight(session, body.dataset_id, previews=body.previews)
        case schemas.ExportOnnxRequest():
            return job_plans.export_onnx(
                session, body.checkpoint_id, name=body.name, precision=body.precision, datasets=_by_task_id(body.datasets)
            )
        case schemas.PredictRequest():
            return job_plans.predict(session, body.checkpoint_id, body.dataset_id)
        case schemas.PrivacyAuditRequest():
            return job_plans.privacy_audit(
                session,
                body.checkpoint_id,
                datasets=_by_task_id(body.datasets),
                samples=body.samples,
                discriminators=body.discriminators,
            )
        case _:
            assert_never(body)


def _by_task_id(datasets: dict[str, str]) -> dict[int, str]:
    return {int(task_id): dataset_id for task_id, dataset_id in datasets.items()}


@router.get("", responses=refusals("cursor_invalid"))
def list_jobs(
    site: Site,
    caller: Viewer,
    paging: PageQuery,
    state: Annotated[jobs.State | schemas.Absent, Query()] = None,
    kind: Annotated[jobs.Kind | schemas.Absent, Query()] = None,
    run_id: Annotated[schemas.RunId | schemas.Absent, Query()] = None,
    checkpoint_id: Annotated[
        schemas.CheckpointId | schemas.Absent, Query(description="Those that start from this checkpoint, or work on it.")
    ] = None,
) -> schemas.Page[schemas.Job]:
    """Jobs, newest first."""
    filters = {"state": state, "kind": kind, "run_id": run_id, "checkpoint_id": checkpoint_id}
    with site.database.read() as session:
        rows, cursor = pages.read(session, site.settings.key, Job, paging, filters, [Job.id])
    return schemas.Page(items=[schemas.Job.model_validate(row) for row in rows], next_cursor=cursor)


@router.get("/{job_id}", responses=refusals("not_found"))
def get_job(job_id: schemas.JobId, site: Site, caller: Viewer) -> schemas.Job:
    """One job: its state, its progress, its result."""
    with site.database.read() as session:
        return schemas.Job.model_validate(need(session, Job, job_id))


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    responses={
        **success(202, "It was ended, or its worker is asked to end it."),
        **refusals("forbidden", "not_found", "conflict"),
    },
)
def cancel_job(job_id: schemas.JobId, site: Site, caller: Operator) -> schemas.Job:
    """End a job: at once while it waits; while it runs it writes a checkpoint first."""
    with site.database.write() as session:
        if need(session, Job, job_id).kind == "keys":
            caller.require("admin")
        return schemas.Job.model_validate(jobs.cancel(session, job_id, caller.actor))


@router.post(
    "/{job_id}/retry",
    status_code=202,
    responses={
        **success(202, "It is in the queue again."),
        **refusals("forbidden", "not_found", "conflict", *SIGNERS, "device_unavailable", "storage_full", "volume_away"),
    },
)
def retry_job(job_id: schemas.JobId, site: Site, caller: Operator) -> schemas.Job:
    """Queue a failed or cancelled job again; it goes on from its newest checkpoint."""
    with site.database.write() as session:
        row = jobs.retry(session, job_id, caller.actor)
        trust.require_job(session, row)
        need_room(site)
        job_plans.check_gpus(session, row.gpus, site.settings.lately)
        job = schemas.Job.model_validate(row)
    site.doorbell.ring(job.id)
    return job
