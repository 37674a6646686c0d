"""Serve checkpoints, which trainings leave for the relay to go on from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from services.api import pages, schemas
from services.api.deps import IfMatch, Operator, Site, Viewer, check_version, etag
from services.api.docs import ETAG, changes, refusals, success
from services.api.pages import PageQuery
from services.api.streaming import Fetch, PartQuery, in_parts, stored
from services.site import ACTIVE, Refusal, artifacts, audit, need, runs
from services.site.db import Artifact, Checkpoint, Evaluation, Job, Model, Run

MEDIA_TYPE = "application/octet-stream"

router = APIRouter(prefix="/api/v1/checkpoints", tags=["checkpoints"])


@router.get("", responses=refusals("cursor_invalid"))
def list_checkpoints(
    site: Site,
    caller: Viewer,
    paging: PageQuery,
    run_id: Annotated[schemas.RunId | schemas.Absent, Query()] = None,
    job_id: Annotated[schemas.JobId | schemas.Absent, Query()] = None,
) -> schemas.Page[schemas.Checkpoint]:
    """Checkpoints, newest first."""
    filters = {"run_id": run_id, "job_id": job_id}
    with site.database.read() as session:
        rows, cursor = pages.read(session, site.settings.key, Checkpoint, paging, filters, [Checkpoint.id])
        return schemas.Page(items=_response_bodies(session, rows), next_cursor=cursor)


@router.get("/{checkpoint_id}", responses={**success(200, "The checkpoint.", headers=ETAG), **refusals("not_found")})
def get_checkpoint(
    checkpoint_id: schemas.CheckpointId, site: Site, caller: Viewer, response: Response
) -> schemas.Checkpoint:
    """One checkpoint."""
    with site.database.read() as session:
        checkpoint = _response_bodies(session, [need(session, Checkpoint, checkpoint_id)])[0]
    response.headers["ETag"] = etag(checkpoint)
    return checkpoint


_DOWNLOAD: Any = {
    "response_class": Response,
    "responses": {
        **in_parts("The safetensors file.", MEDIA_TYPE),
        **refusals("forbidden", "not_found", "artifact_damaged", "range_not_satisfiable", "real_images", "run_file_invalid"),
    },
}


@router.get("/{checkpoint_id}/download", **_DOWNLOAD)
@router.head("/{checkpoint_id}/download", name="head_checkpoint", **_DOWNLOAD)
def download_checkpoint(checkpoint_id: schemas.CheckpointId, site: Site, caller: Operator, asked: PartQuery) -> Response:
    """Download a checkpoint's file; the bytes are verified while they are sent, and the last come only if all were right.

    With `Range`, the whole file is verified before the first byte is sent. The audit log says who fetched it.
    """
    with site.database.read() as session:
        row = need(session, Checkpoint, checkpoint_id)
        runs.require_no_images(need(session, Run, row.run_id))
        artifact = session.get_one(Artifact, row.digest)
    return stored(site, artifact, MEDIA_TYPE, asked, f"{row.id}.safetensors", Fetch(caller, row.id))


@router.patch(
    "/{checkpoint_id}",
    responses={
        **success(200, "The checkpoint as it is now.", headers=ETAG),
        **changes("not_found", "precondition_required", "precondition_failed"),
    },
)
def change_checkpoint(
    checkpoint_id: schemas.CheckpointId,
    body: schemas.CheckpointChange,
    if_match: IfMatch,
    site: Site,
    caller: Operator,
    response: Response,
) -> schemas.Checkpoint:
    """Pin a checkpoint, so that nobody deletes it, or change its note."""
    with site.database.write() as session:
        row = _locked_row(session, checkpoint_id)
        check_version(row, if_match)
        before = row.pinned, row.note
        if body.pinned is not None and body.pinned != row.pinned:
            row.pinned = body.pinned
            audit.record(session, caller.actor, "checkpoint.pin", row.id, pinned=body.pinned)
        if body.note is not None and body.note != row.note:
            row.note = body.note
            audit.record(session, caller.actor, "checkpoint.note", row.id, note=body.note)
        if (row.pinned, row.note) != before:
            row.version += 1
        checkpoint = _response_bodies(session, [row])[0]
    response.headers["ETag"] = etag(checkpoint)
    return checkpoint


@router.delete("/{checkpoint_id}", status_code=204, responses=refusals("forbidden", "not_found", "in_use"))
def delete_checkpoint(checkpoint_id: schemas.CheckpointId, site: Site, caller: Operator) -> None:
    """Delete a checkpoint. Refused while it is pinned, another one or a model was made of it, or an unfinished job needs it.

    An evaluation is no reason to refuse: its figures stay, they only lose the link (the evaluation's job still names
    the checkpoint, the audit log its digest). The bytes go with the next sweep.
    """
    with site.database.write() as session:
        row = _locked_row(session, checkpoint_id)
        if row.pinned:
            raise Refusal("in_use", f"{row.id} is pinned; unpin it first")
        child = session.scalars(select(Checkpoint.id).where(Checkpoint.parent_id == row.id).limit(1)).first()
        if child is not None:
            raise Refusal("in_use", f"{child} grew out of {row.id}; delete that one first")
        model = session.scalars(select(Model).where(Model.checkpoint_id == row.id).limit(1)).first()
        if model is not None:  # it tells whose bundles the model descends from, which a revoked key makes a question
            raise Refusal("in_use", f"version {model.version} of model {model.name} was made of {row.id}")
        conditions = Job.checkpoint_id == row.id, Job.state.in_(ACTIVE)
        needing_job = session.scalars(select(Job.id).where(*conditions).limit(1)).first()
        if needing_job is not None:
            raise Refusal("in_use", f"{needing_job} needs {row.id}; cancel it or wait for its end")
        session.execute(update(Evaluation).where(Evaluation.checkpoint_id == row.id).values(checkpoint_id=None))
        artifacts.detach(session, row.id)
        session.delete(row)
        audit.record(session, caller.actor, "checkpoint.delete", row.id, run=row.run_id, digest=row.digest)


def _response_bodies(session: Session, rows: Sequence[Checkpoint]) -> list[schemas.Checkpoint]:
    """Return the response bodies of the rows, with the sizes of their files."""
    digests = {row.digest for row in rows}
    size_rows = session.execute(select(Artifact.digest, Artifact.size).where(Artifact.digest.in_(digests)))
    sizes = dict(size_rows.tuples().all())
    fields = [name for name in schemas.Checkpoint.model_fields if name != "size"]
    return [
        schemas.Checkpoint.model_validate({**{name: getattr(row, name) for name in fields}, "size": sizes[row.digest]})
        for row in rows
    ]


def _locked_row(session: Session, checkpoint_id: str) -> Checkpoint:
    row = session.get(Checkpoint, checkpoint_id, with_for_update=True)
    if row is None:
        raise Refusal("not_found", f"there is no checkpoint {checkpoint_id}")
    return row
