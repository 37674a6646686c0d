"""Serve uploads in pieces: a bundle of gigabytes over a bad line goes on where it broke off."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request

from services.api import schemas
from services.api.deps import Operator, Site, need_room
from services.api.docs import changes, refusals
from services.api.middleware import MAX_BODY
from services.site import Refusal, Upload

router = APIRouter(prefix="/api/v1/uploads", tags=["hand-off"])

Name = Annotated[
    str,
    Path(pattern=schemas.UPLOAD_NAME, description="What the caller calls the upload.", examples=["9f1c2b9e-7a55-4d0c"]),
]
_PIECE = {"schema": {"type": "string", "format": "binary", "minLength": 1}}


async def _piece(request: Request) -> bytes:
    piece = await request.body()
    if not piece:
        raise Refusal("bad_request", "the body is empty: send the piece itself")
    return piece


@router.put(
    "/{upload}",
    responses=changes("not_found", "conflict", "storage_full", "volume_away"),
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": _PIECE}}},
)
def add_piece(
    upload: Name,
    caller: Operator,
    site: Site,
    piece: Annotated[bytes, Depends(_piece)],
    offset: Annotated[int, Query(ge=0, lt=1 << 53, description="Where the piece begins: the bytes that came so far.")] = 0,
) -> schemas.UploadState:
    """Add the next piece of a file, of at most 2 MiB. One that is not due is refused, with `received`: go on from there."""
    need_room(site, len(piece))
    received = Upload(site.store, caller.token_id, upload).add(offset, piece, site.settings.max_bundle_mib << 20)
    return schemas.UploadState(received=received, piece_limit=MAX_BODY)


@router.get("/{upload}", responses=refusals("forbidden", "not_found"))
def get_upload(upload: Name, caller: Operator, site: Site) -> schemas.UploadState:
    """How much of a file came so far: 0 where nobody began. `POST /api/v1/imports?upload=NAME` takes it when it is whole."""
    return schemas.UploadState(received=Upload(site.store, caller.token_id, upload).received, piece_limit=MAX_BODY)
