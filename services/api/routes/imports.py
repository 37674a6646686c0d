"""Serve imports: bundles that were brought here, and whether they may be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Body, Depends, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.api import pages, schemas
from services.api.deps import IdempotencyKey, Operator, Site, Viewer, need_room
from services.api.docs import LOCATION, REPLAYED, SIGNERS, changes, refusals, success
from services.api.middleware import drain
from services.api.pages import PageQuery
from services.api.streaming import Fetch, FileQuery, stored, whole
from services.site import Refusal, Upload, artifacts, bundle_exchange, need
from services.site.db import Bundle, Job

PATH = "/api/v1/imports"
TYPES = (bundle_exchange.MEDIA_TYPE, "application/octet-stream")
CARD = "MODEL_CARD.md"
MARKDOWN = "text/markdown"

router = APIRouter(prefix=PATH, tags=["hand-off"])


@dataclass(frozen=True)
class _Upload:
    """Describes an uploaded file that is in the store and has no row in the database yet."""

    digest: str
    size: int
    purpose: bundle_exchange.Purpose
    key: str
    pieces: Upload | None = None
    """What it came in, if in pieces: they are forgotten once the row is there."""


async def _receive_upload(
    request: Request,
    caller: Operator,
    site: Site,
    key: IdempotencyKey,
    purpose: Annotated[
        bundle_exchange.Purpose, Query(description="evaluate: only to score it, whoever's turn it is.")
    ] = "train",
    upload: Annotated[
        str | schemas.Absent,
        Query(pattern=schemas.UPLOAD_NAME, description="Take what was uploaded in pieces, instead of the body."),
    ] = None,
) -> _Upload:
    """Write the request's body to the artifact volume, chunk by chunk; nothing stays of a body that is refused."""
    if upload is not None:
        pieces = Upload(site.store, caller.token_id, upload)
        need_room(site, pieces.received)
        digest, size = await to_thread.run_sync(site.store.put, pieces.pieces())
        return _Upload(digest, size, purpose, key, pieces)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    declared = request.headers.get("content-length", "0")
    size = int(declared) if declared.isdigit() else 0
    limit, more = site.settings.max_bundle_mib << 20, True
    try:
        if content_type not in TYPES:
            raise Refusal("unsupported_media_type", f"send the file itself as {' or '.join(TYPES)}")
        if size > limit:
            raise Refusal("too_large", f"a bundle may have {limit} bytes here (RELAY_MAX_BUNDLE_MIB)")
        need_room(site, size)
        with site.store.incoming(limit) as file:
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Refusal("bad_request", "the upload broke off")
                more = message.get("more_body", False)
                await to_thread.run_sync(file.write, message.get("body", b""))
            if not file.size:
                raise Refusal("bad_request", "the body is empty: send the file itself")
            digest, size = await to_thread.run_sync(file.keep)
    except Refusal:
        if more:
            await drain(request.receive)
        raise
    return _Upload(digest, size, purpose, key)


_BODY = {"schema": {"type": "string", "format": "binary", "minLength": 1}}


@router.post(
    "",
    status_code=202,
    responses={
        **success(202, "Taken in; a job verifies it.", headers=LOCATION | REPLAYED),
        **changes(
            "not_found", "idempotency_key_missing", "idempotency_key_reused", "queue_full", "storage_full", "volume_away"
        ),
    },
    openapi_extra={"requestBody": {"required": False, "content": dict.fromkeys(TYPES, _BODY)}},
)
def submit_import(
    caller: Operator, upload: Annotated[_Upload, Depends(_receive_upload)], site: Site, response: Response
) -> schemas.Import:
    """Bring a bundle, given as the body itself, or by the name of an upload in pieces.

    A job verifies it; then it waits in quarantine for an operator.
    """
    with site.database.write() as session:
        row, is_new = bundle_exchange.receive(
            session, upload.digest, upload.size, purpose=upload.purpose, actor=caller.actor, key=upload.key,
            queue_limit=site.settings.queue_limit,
        )  # fmt: skip
        (imported,) = _response_bodies(session, [row])
    if upload.pieces is not None:
        upload.pieces.forget()
    if is_new:
        site.doorbell.ring(imported.job_id)
    else:
        response.headers["Idempotency-Replayed"] = "true"
    response.headers["Location"] = f"{PATH}/{imported.id}"
    return imported


@router.get("", responses=refusals("cursor_invalid"))
def list_imports(
    site: Site,
    caller: Viewer,
    paging: PageQuery,
    state: Annotated[bundle_exchange.Shown | schemas.Absent, Query()] = None,
    run_id: Annotated[schemas.RunId | schemas.Absent, Query()] = None,
) -> schemas.Page[schemas.Import]:
    """Bundles that were brought here, newest first."""
    filters = {"direction": "import", "shown": state, "run_id": run_id}
    with site.database.read() as session:
        rows, cursor = pages.read(session, site.settings.key, Bundle, paging, filters, [Bundle.id])
        return schemas.Page(items=_response_bodies(session, rows), next_cursor=cursor)


@router.get("/{bundle_id}", responses=refusals("not_found"))
def get_import(bundle_id: schemas.BundleId, site: Site, caller: Viewer) -> schemas.Import:
    """One import: who signed it, what it was trained on before, how it scored; or why it was refused."""
    with site.database.read() as session:
        return _response_bodies(session, [_import_row(session, bundle_id)])[0]


@router.get(
    "/{bundle_id}/card",
    response_class=Response,
    responses={
        **whole("The model card.", MARKDOWN, {"type": "string"}),
        **refusals("not_found", "conflict", "artifact_damaged"),
    },
)
def get_card(bundle_id: schemas.BundleId, site: Site, caller: Viewer, asked: FileQuery) -> Response:
    """An import's model card, for people."""
    with site.database.read() as session:
        row = _import_row(session, bundle_id)
        card = artifacts.attached(session, row.id).get(CARD)
    if card is None:
        raise Refusal("conflict", f"{row.id} is {row.shown}: it has no model card here")
    return stored(site, card, MARKDOWN, asked, fetch=Fetch(caller, f"{row.id}/{CARD}"))


@router.post(
    "/{bundle_id}/accept",
    responses=refusals(
        "forbidden", "not_found", "conflict", "bundle_stale", "checkpoint_invalid", *SIGNERS, "not_ready"
    ),
)  # fmt: skip
def accept_import(bundle_id: schemas.BundleId, site: Site, caller: Operator) -> schemas.Import:
    """Make an import the checkpoint that the next training here starts from; look at signer, history and metrics first."""
    with site.database.write() as session:
        row = bundle_exchange.accept(session, site.store, bundle_id, caller.actor, site.settings.lately)
        return _response_bodies(session, [row])[0]


@router.post("/{bundle_id}/reject", responses=changes("not_found", "conflict"))
def reject_import(
    bundle_id: schemas.BundleId, body: Annotated[schemas.Rejection, Body()], site: Site, caller: Operator
) -> schemas.Import:
    """Reject an import: its bytes are swept away, the row with what its manifest said stays."""
    with site.database.write() as session:
        return _response_bodies(session, [bundle_exchange.reject(session, bundle_id, caller.actor, body.reason)])[0]


def _import_row(session: Session, bundle_id: str) -> Bundle:
    row = need(session, Bundle, bundle_id)
    if row.direction != "import":
        raise Refusal("not_found", f"{row.id} was built here, see /api/v1/exports/{row.id}")
    return row


def _response_bodies(session: Session, rows: Sequence[Bundle]) -> list[schemas.Import]:
    """Return the response bodies of the rows; refused imports get the error of their job."""
    refused = [row.job_id for row in rows if row.shown == "refused"]
    error_rows = session.execute(select(Job.id, Job.error).where(Job.id.in_(refused))).tuples()
    errors: dict[str, dict[str, Any] | None] = dict(error_rows.all())
    fields = [name for name in schemas.Import.model_fields if name not in ("state", "error")]
    return [
        schemas.Import.model_validate(
            {**{name: getattr(row, name) for name in fields}, "state": row.shown, "error": errors.get(row.job_id)}
        )
        for row in rows
    ]
