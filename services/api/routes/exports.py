"""Serve exports: signed bundles and reports that are built here for other sites."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Response

from services.api import pages, schemas
from services.api.deps import IdempotencyKey, Operator, Site, Viewer, need_room
from services.api.docs import LOCATION, REPLAYED, SIGNERS, changes, refusals, success
from services.api.pages import PageQuery
from services.api.streaming import Fetch, PartQuery, in_parts, stored
from services.site import JobPlan, Refusal, artifacts, audit, bundle_exchange, job_plans, jobs, need
from services.site.db import Bundle

router = APIRouter(prefix="/api/v1/exports", tags=["hand-off"])


@router.post(
    "",
    status_code=202,
    responses={
        **success(202, "Accepted: a job builds it.", headers=LOCATION | REPLAYED),
        **changes(
            "real_images", "run_file_invalid", "idempotency_key_missing", "idempotency_key_reused", "not_found", "conflict",
            "bundle_incomplete", "release_refused", "reason_missing", *SIGNERS, "queue_full", "storage_full", "volume_away",
        ),
    },
)  # fmt: skip
def submit_export(
    body: Annotated[schemas.HandOffRequest, Body()], key: IdempotencyKey, site: Site, caller: Operator, response: Response
) -> schemas.Job:
    """Build the signed bundle of a checkpoint, or sign the scores of an evaluation. The job's result names what it made."""
    request_body = body.model_dump(mode="json")
    for name, absent in (("override", None), ("discriminators", True)):  # older requests are repeated by their key
        if request_body.get(name, ...) is absent:
            del request_body[name]
    with site.database.write() as session:
        job = jobs.replayed(session, caller.actor, key, request_body)
        is_new = job is None
        if job is None:
            need_room(site)
            kind: jobs.Kind = "export" if isinstance(body, schemas.ExportRequest) else "report"
            plan: JobPlan = (
                job_plans.export(
                    session,
                    body.checkpoint_id,
                    recipient=body.recipient,
                    half=body.half,
                    policy=site.settings.release_policy,
                    override=body.override,
                    discriminators=body.discriminators,
                )
                if isinstance(body, schemas.ExportRequest)
                else job_plans.report(session, body.evaluation_id)
            )
            job, is_new = jobs.submit(
                session, kind=kind, params=plan.params, actor=caller.actor, key=key, body=request_body, gpus=plan.gpus,
                run_id=plan.run_id, checkpoint_id=plan.checkpoint_id, queue_limit=site.settings.queue_limit,
            )  # fmt: skip
            if is_new and (reason := plan.params.get("override")) is not None:
                audit.record(session, caller.actor, "export.override", str(plan.checkpoint_id), reason=reason, job=job.id)
        submitted = schemas.Job.model_validate(job)
    if is_new:
        site.doorbell.ring(submitted.id)
    else:
        response.headers["Idempotency-Replayed"] = "true"
    response.headers["Location"] = f"/api/v1/jobs/{submitted.id}"
    return submitted


@router.get("", responses=refusals("cursor_invalid"))
def list_exports(
    site: Site,
    caller: Viewer,
    paging: PageQuery,
    run_id: Annotated[schemas.RunId | schemas.Absent, Query()] = None,
) -> schemas.Page[schemas.Export]:
    """Bundles that were built here, newest first."""
    filters = {"direction": "export", "run_id": run_id}
    with site.database.read() as session:
        rows, cursor = pages.read(session, site.settings.key, Bundle, paging, filters, [Bundle.id])
    return schemas.Page(items=[schemas.Export.model_validate(row) for row in rows], next_cursor=cursor)


@router.get("/{bundle_id}", responses=refusals("not_found"))
def get_export(bundle_id: schemas.BundleId, site: Site, caller: Viewer) -> schemas.Export:
    """One exported bundle, with what its manifest says."""
    with site.database.read() as session:
        return schemas.Export.model_validate(_require_export(need(session, Bundle, bundle_id)))


_DOWNLOAD: Any = {
    "response_class": Response,
    "responses": {
        **in_parts("The bundle.", bundle_exchange.MEDIA_TYPE),
        **refusals("forbidden", "not_found", "artifact_damaged", "range_not_satisfiable"),
    },
}


@router.get("/{bundle_id}/download", **_DOWNLOAD)
@router.head("/{bundle_id}/download", name="head_export", **_DOWNLOAD)
def download_export(bundle_id: schemas.BundleId, site: Site, caller: Operator, asked: PartQuery) -> Response:
    """Download a bundle's file, to be carried away; the audit log says who fetched it. It holds a checkpoint's networks.

    The bytes are verified while they are sent, and the last come only if all were right; with `Range`, the whole file is
    verified before the first byte is sent.
    """
    with site.database.read() as session:
        row = _require_export(need(session, Bundle, bundle_id))
        artifact = artifacts.attached(session, row.id)[bundle_exchange.FILE]
    fetch = Fetch(caller, row.id, "export.download")
    return stored(site, artifact, bundle_exchange.MEDIA_TYPE, asked, f"{row.id}.relay", fetch)


def _require_export(row: Bundle) -> Bundle:
    if row.direction != "export":
        raise Refusal("not_found", f"{row.id} was imported, see /api/v1/imports/{row.id}")
    return row
