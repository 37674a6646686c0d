"""Build the OpenAPI document, which names every status that a route can answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

import relay_core
from services.api.problems import MEDIA_TYPE
from services.api.schemas import Problem
from services.site import CATALOGUE

Responses = dict[int | str, dict[str, Any]]

ETAG = {"ETag": {"description": "Version, for If-Match.", "required": True, "schema": {"type": "string"}}}
REPLAYED = {"Idempotency-Replayed": {"description": "true: the key made this job before.", "schema": {"type": "string"}}}
LOCATION = {"Location": {"description": "Where it is.", "required": True, "schema": {"type": "string"}}}

SIGNERS = ("signer_revoked", "signer_unknown")
"""Codes of what goes on from a model whose signer is trusted no more."""
_ALWAYS = ("internal", "database_unavailable")
_PROTECTED = ("unauthenticated", "locked_out", "invalid_request")
_HEADERS = {
    "unauthenticated": "WWW-Authenticate",
    "locked_out": "Retry-After",
    "database_unavailable": "Retry-After",
    "precondition_failed": "ETag",
    "range_not_satisfiable": "Content-Range",
}
_DESCRIPTION = """
One hospital site of a relay: data sets, runs, jobs, checkpoints, evaluations.

Every address under /api needs a bearer token (`relay token create`). A viewer reads, an operator changes things, an admin
also reads the audit log. What is refused is answered as a problem document (RFC 9457). What answers GET answers HEAD too
(streams of events do not), and 304 to an If-None-Match with the ETag that it gave.
"""


def refusals(*codes: str, public: bool = False) -> Responses:
    """Return the `responses` entries for what a route may refuse; what every route may refuse is added.

    Args:
        codes: keys of the catalogue of refusals, `services.site.CATALOGUE`.
        public: whether the route needs no token.
    """
    by_status: dict[int, list[str]] = {}
    for code in (*codes, *(() if public else _PROTECTED), *_ALWAYS):
        by_status.setdefault(CATALOGUE[code].status, []).append(code)
    return {status: _documented(grouped_codes) for status, grouped_codes in sorted(by_status.items())}


def changes(*codes: str) -> Responses:
    """Return the `refusals` of a route that an operator sends JSON to."""
    return refusals("forbidden", "bad_request", "too_large", "unsupported_media_type", *codes)


def success(
    status: int, description: str, *, media_type: str | None = None, headers: Any = None, schema: Any = None
) -> Responses:
    """Return the `responses` entry for a route's success, where it has headers or a body that is not JSON."""
    content = {media_type: {"schema": schema or {"type": "string", "format": "binary"}}} if media_type else None
    return {
        status: {
            "description": description,
            **({"headers": headers} if headers else {}),
            **({"content": content} if content else {}),
        }
    }


def _documented(codes: list[str]) -> dict[str, Any]:
    names = list(dict.fromkeys(codes))
    headers = {_HEADERS[code]: {"schema": {"type": "string"}} for code in names if code in _HEADERS}
    return {
        "description": "; ".join(f"`{code}`: {CATALOGUE[code].title}" for code in names),
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        **({"headers": headers} if headers else {}),
    }


def operation_id(route: APIRoute) -> str:
    """Return the operation's id, which names it in generated clients: the name of the route's function."""
    return route.name


def serve_document(app: FastAPI) -> None:
    """Serve the OpenAPI document of an application at `/openapi.json`, encoded once, with an ETag."""
    app.openapi = _schema_of(app)  # type: ignore[method-assign]

    @cache
    def encoded() -> tuple[bytes, str]:
        document = json.dumps(app.openapi(), ensure_ascii=False, separators=(",", ":")).encode()
        return document, f'"{hashlib.sha256(document).hexdigest()}"'

    @app.get("/openapi.json", include_in_schema=False)
    def openapi() -> Response:
        document, etag = encoded()
        return Response(document, media_type="application/json", headers={"ETag": etag})


def _schema_of(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """Return the function that builds an application's OpenAPI document at its first call and keeps it."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title="relay site", version=relay_core.__version__, description=_DESCRIPTION, routes=app.routes
            )
            definition = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            document["components"]["schemas"] |= {**definition.pop("$defs", {}), "Problem": definition}
            app.openapi_schema = document
        return app.openapi_schema

    return openapi
