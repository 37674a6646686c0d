"""Answer with stored files, streamed and verified, whole or in part."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from itertools import chain
from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Header
from starlette.responses import Response, StreamingResponse

from services.api.deps import ServiceParts
from services.api.docs import Responses, success
from services.api.schemas import Absent
from services.site import Identity, Refusal, audit
from services.site.db import Artifact

_TEXT = {"required": True, "schema": {"type": "string"}}
HEADERS = dict.fromkeys(("ETag", "Content-Length", "Repr-Digest"), _TEXT)
_ONE_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")


@dataclass(frozen=True)
class Part:
    """Says which bytes of a file a client asks for; by default all of them."""

    range: str | None = None
    if_range: str | None = None

    def of(self, artifact: Artifact) -> tuple[int, int] | None:
        """Return the positions of the first and the last byte, counted from 0, or None for the whole file.

        A header that is not one range of bytes, or that is for another version of the file, is ignored (RFC 9110).

        Raises:
            Refusal: `range_not_satisfiable` where the file has no such bytes.
        """
        matched = _ONE_RANGE.fullmatch(self.range or "")
        if matched is None or (self.if_range is not None and self.if_range != f'"{artifact.digest}"'):
            return None
        first, last, suffix = matched.groups()
        if suffix is not None:
            begin, end = max(0, artifact.size - int(suffix)), artifact.size - 1
        else:
            begin, end = int(first), min(int(last or artifact.size), artifact.size - 1)
            if last and int(last) < begin:
                return None
        if begin > end:
            content_range = {"Content-Range": f"bytes */{artifact.size}"}
            raise Refusal("range_not_satisfiable", f"the file has {artifact.size} bytes", content_range)
        return begin, end


async def _part(
    range_: Annotated[
        str | Absent,
        Header(alias="Range", description="One range of bytes, to go on with a download.", examples=["bytes=0-1023"]),
    ] = None,
    if_range: Annotated[
        str | Absent, Header(alias="If-Range", description="The ETag: where the file is another by now, all of it comes.")
    ] = None,
) -> Part:
    return Part(range_, if_range)


PartQuery = Annotated[Part, Depends(_part)]


def download(description: str, media_type: str) -> Responses:
    """Return the `responses` entries of a route that serves files whole or in part."""
    headers = HEADERS | {"Accept-Ranges": _TEXT}
    whole = success(200, description, media_type=media_type, headers=headers)
    part = success(206, "The range of it.", media_type=media_type, headers=headers | {"Content-Range": _TEXT})
    return {**whole, **part}


def note_download(site: ServiceParts, caller: Identity, subject: str, artifact: Artifact, part: Part | None = None) -> None:
    """Write into the audit log who fetches which file.

    Args:
        site: the site's parts.
        caller: who fetches it.
        subject: what the file belongs to, an id, and its name where there are several.
        artifact: the file.
        part: the bytes that are asked for; None: all.
    """
    asked = part.range if part is not None else None
    with site.database.write() as session:
        audit.record(session, caller.actor, "download", subject[:200], digest=artifact.digest, range=asked)


def stored(
    site: ServiceParts, artifact: Artifact, media_type: str, filename: str | None = None, body: bool = True,
    part: Part | None = None,
) -> Response:  # fmt: skip
    """Return the answer that sends an artifact's bytes, verified.

    Of a whole file, the last bytes are sent only if all had the right digest; before a part is sent, the whole file is read.

    Args:
        site: the site's parts; its store holds the bytes.
        artifact: the file to send.
        media_type: the answer's Content-Type.
        filename: the name under which a browser saves the file; None: it may show the file instead.
        body: False: send the headers only, in answer to HEAD.
        part: the bytes that are asked for; None: the file is served only whole.

    Raises:
        Refusal: `artifact_damaged`, where the damage is seen before the first byte is sent; `range_not_satisfiable`.
    """
    headers = {
        "ETag": f'"{artifact.digest}"',
        "Content-Length": str(artifact.size),
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(artifact.digest)).decode()}:",
    }
    if filename is not None:
        headers["Content-Disposition"] = _attachment(filename)
    if part is not None:
        headers["Accept-Ranges"] = "bytes"
    if not body:
        return Response(media_type=media_type, headers=headers)
    byte_range = part.of(artifact) if part is not None else None
    status, chunks = 200, site.store.read(artifact.digest)
    if byte_range is not None:
        headers |= {
            "Content-Length": str(byte_range[1] - byte_range[0] + 1),
            "Content-Range": f"bytes {byte_range[0]}-{byte_range[1]}/{artifact.size}",
        }
        status, chunks = 206, site.store.read_part(artifact.digest, *byte_range)
    first = next(chunks, b"")
    return StreamingResponse(chain([first], chunks), status, media_type=media_type, headers=headers)


def _attachment(filename: str) -> str:
    """Return Content-Disposition for a file name of any letters (RFC 6266, RFC 8187)."""
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", filename)
    extended = "" if plain == filename else f"; filename*=UTF-8''{quote(filename, safe='')}"
    return f'attachment; filename="{plain}"{extended}'
