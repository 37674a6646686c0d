"""Stored bytes as an answer: streamed, and verified while they go."""

from __future__ import annotations

import base64
from itertools import chain

from starlette.responses import Response, StreamingResponse

from services.api.deps import Parts
from services.site.db.models import Artifact

HEADERS = {name: {"required": True, "schema": {"type": "string"}} for name in ("ETag", "Content-Length", "Repr-Digest")}


def stored(site: Parts, artifact: Artifact, media_type: str, filename: str | None = None, body: bool = True) -> Response:
    """The bytes of an artifact. The last of them are sent only if all had the right digest.

    Args:
        site: whose store.
        artifact: which bytes.
        media_type: what to call them.
        filename: what a browser saves them as; None: it may show them.
        body: False answers HEAD.

    Raises:
        Refusal: `artifact_damaged`, where that is seen before the first byte goes out.
    """
    headers = {
        "ETag": f'"{artifact.digest}"',
        "Content-Length": str(artifact.size),
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(artifact.digest)).decode()}:",
    }
    if filename is not None:
        headers["Content-Disposition"] = f'attachment; filename="{filename}"'
    if not body:
        return Response(media_type=media_type, headers=headers)
    chunks = site.store.read(artifact.digest)
    first = next(chunks, b"")
    return StreamingResponse(chain([first], chunks), media_type=media_type, headers=headers)
