"""Answer with stored files, streamed and verified, whole or in part."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Header
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from services.api.conditional import names
from services.api.deps import ServiceParts
from services.api.docs import Responses, success
from services.api.middleware import is_head
from services.api.schemas import Absent
from services.site import Identity, Refusal, audit
from services.site.db import Artifact

_TEXT = {"required": True, "schema": {"type": "string"}}
HEADERS = dict.fromkeys(("ETag", "Content-Length", "Repr-Digest"), _TEXT)
_ONE_RANGE = re.compile(r"bytes=[ \t]*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """Says what of a file a client asks for: by default all of it."""

    head: bool = False
    """Whether the client wants to know of the file only: a HEAD request."""
    unless: str | None = None
    """The header If-None-Match: versions of the file that the client has."""
    ranged = False
    """Whether a part of the file can be asked for."""

    def known(self, artifact: Artifact) -> bool:
        """Return whether the client has the file already."""
        return self.unless is not None and names(self.unless, f'"{artifact.digest}"', weakly=True)

    def part(self, artifact: Artifact) -> tuple[int, int] | None:
        """Return the positions of the first and the last byte, counted from 0, or None for the whole file."""
        return None


@dataclass(frozen=True)
class AskedPart(Asked):
    """Says also which bytes of a file a client asks for, of files large enough to go on with a broken download."""

    range: str | None = None
    if_range: str | None = None
    ranged = True

    def part(self, artifact: Artifact) -> tuple[int, int] | None:
        """Return the positions of the first and the last byte, counted from 0, or None for the whole file.

        A header that is not one range of bytes, or that is for another version of the file, is ignored (RFC 9110).

        Raises:
            Refusal: `range_not_satisfiable` where the file has no such bytes.
        """
        matched = _ONE_RANGE.fullmatch((self.range or "").strip())
        if self.head or matched is None or (self.if_range is not None and self.if_range != f'"{artifact.digest}"'):
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


async def _asked(
    request: Request,
    if_none_match: Annotated[
        str | Absent, Header(alias="If-None-Match", description="The ETag of what the client has: 304 where that is it.")
    ] = None,
) -> Asked:
    return Asked(is_head(request.scope), if_none_match)


async def _asked_part(
    asked: Annotated[Asked, Depends(_asked)],
    range_: Annotated[
        str | Absent,
        Header(alias="Range", description="One range of bytes, to go on with a download.", examples=["bytes=0-1023"]),
    ] = None,
    if_range: Annotated[
        str | Absent, Header(alias="If-Range", description="The ETag: where the file is another by now, all of it comes.")
    ] = None,
) -> AskedPart:
    return AskedPart(asked.head, asked.unless, range_, if_range)


FileQuery = Annotated[Asked, Depends(_asked)]
PartQuery = Annotated[AskedPart, Depends(_asked_part)]


def whole(description: str, media_type: str, schema: Any = None) -> Responses:
    """Return the `responses` entries of a route that serves stored files."""
    unchanged: Responses = {304: {"description": "The client has it already.", "headers": {"ETag": _TEXT}}}
    return {**success(200, description, media_type=media_type, headers=HEADERS, schema=schema), **unchanged}


def in_parts(description: str, media_type: str) -> Responses:
    """Return the `responses` entries of a route that serves stored files whole or in part."""
    headers = HEADERS | {"Accept-Ranges": _TEXT}
    entries = whole(description, media_type)
    entries[200]["headers"] = headers
    part = success(206, "The range of it.", media_type=media_type, headers=headers | {"Content-Range": _TEXT})
    return {**entries, **part}


@dataclass(frozen=True)
class Fetch:
    """Says who fetches what, for the audit log."""

    caller: Identity
    subject: str
    """What the file belongs to, an id, and its name where there are several."""
    action: str = "download"


def stored(
    site: ServiceParts, artifact: Artifact, media_type: str, asked: Asked, filename: str | None = None,
    fetch: Fetch | None = None,
) -> Response:  # fmt: skip
    """Return the answer that sends an artifact's bytes, verified; the audit log says who fetches them.

    Of a whole file, the last bytes are sent only if all had the right digest; before a part is sent, the whole file is read.

    Args:
        site: the site's parts; its store holds the bytes.
        artifact: the file to send.
        media_type: the answer's Content-Type.
        asked: what of the file is asked for. Nothing of it is sent to a client that has it, or that only asks about it.
        filename: the name under which a browser saves the file; None: it may show the file instead.
        fetch: what the audit log says; None: nothing.

    Raises:
        Refusal: `artifact_damaged`, where the damage is seen before the first byte is sent; `range_not_satisfiable`.
    """
    etag = {"ETag": f'"{artifact.digest}"'}
    if asked.known(artifact):
        return Response(status_code=304, headers=etag)
    headers = etag | {
        "Content-Length": str(artifact.size),
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(artifact.digest)).decode()}:",
    }
    if filename is not None:
        headers["Content-Disposition"] = _attachment(filename)
    if asked.ranged:
        headers["Accept-Ranges"] = "bytes"
    if asked.head:
        return Response(media_type=media_type, headers=headers)
    byte_range = asked.part(artifact)
    if fetch is not None:
        _note(site, fetch, artifact, byte_range)
    status, chunks = 200, site.store.read(artifact.digest)
    if byte_range is not None:
        headers |= {
            "Content-Length": str(byte_range[1] - byte_range[0] + 1),
            "Content-Range": f"bytes {byte_range[0]}-{byte_range[1]}/{artifact.size}",
        }
        status, chunks = 206, site.store.read_part(artifact.digest, *byte_range)
    first = next(chunks, b"")
    return StreamingResponse(chain([first], chunks), status, media_type=media_type, headers=headers)


def _note(site: ServiceParts, fetch: Fetch, artifact: Artifact, byte_range: tuple[int, int] | None) -> None:
    text = None if byte_range is None else f"bytes={byte_range[0]}-{byte_range[1]}"
    with site.database.write() as session:
        audit.record(session, fetch.caller.actor, fetch.action, fetch.subject[:200], digest=artifact.digest, range=text)


def _attachment(filename: str) -> str:
    """Return Content-Disposition for a file name of any letters (RFC 6266, RFC 8187)."""
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", filename)
    extended = "" if plain == filename else f"; filename*=UTF-8''{quote(filename, safe='', errors='replace')}"
    return f'attachment; filename="{plain}"{extended}'
