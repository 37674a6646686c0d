"""Answer everything that is refused with a problem document (RFC 9457), from one catalogue."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Scope

from relay_core.errors import RelayError
from services.site import CATALOGUE

MEDIA_TYPE = "application/problem+json"
MAX_FIELDS = 20
"""The most wrong keys of a request that one problem document lists."""
log = logging.getLogger(__name__)

_HTTP = {404: "not_found", 405: "method_not_allowed", 408: "too_slow", 413: "too_large", 415: "unsupported_media_type"}
_SENTENCES = {
    "not_found": "there is nothing at this address",
    "bad_request": "the body cannot be read as what its Content-Type says",
    "too_slow": "the body comes too slowly; send it again over a better line",
    "too_large": "the body is larger than this address takes",
    "database_unavailable": "the database does not answer; try again in a few seconds",
    "internal": "an error inside the service; its log has more under this request_id",
}
_MISSING_HEADERS = {
    "idempotency-key": ("idempotency_key_missing", "a job needs a header Idempotency-Key, such as a random UUID"),
    "if-match": ("precondition_required", "read it first, then send its ETag as the header If-Match"),
}


def problem(
    scope: Scope,
    code: str,
    detail: str | None = None,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> JSONResponse:
    """Return the answer to a request that is refused.

    Args:
        scope: the request's ASGI scope.
        code: a key of the catalogue, `services.site.CATALOGUE`.
        detail: what was wrong, and what to do; default: the code's own sentence.
        headers: further headers of the answer.
        extra: further members of the document.
    """
    entry = CATALOGUE[code]
    headers = {**({"Retry-After": "5"} if entry.status in (429, 503) else {}), **(headers or {})}
    detail = detail or _SENTENCES.get(code, entry.title)
    content = {
        "type": f"/problems/{code}",
        "title": entry.title,
        "status": entry.status,
        "detail": detail,
        "instance": scope["path"],
        "code": code,
        "request_id": scope.get("request_id", ""),
        "error": detail,
        **(extra or {}),
    }
    return JSONResponse(content, entry.status, headers=headers, media_type=MEDIA_TYPE)


def add_handlers(app: FastAPI) -> None:
    """Answer every refusal with a problem document."""
    app.add_exception_handler(RelayError, handle_refusal)
    app.add_exception_handler(RequestValidationError, _handle_invalid_request)
    app.add_exception_handler(HTTPException, _handle_http_error)
    for error in (OperationalError, InterfaceError, PoolTimeout):
        app.add_exception_handler(error, _handle_database_error)


async def handle_refusal(request: Request, error: Exception) -> JSONResponse:
    """Return the answer to a request that ends with an error of relay's, or of the database."""
    if isinstance(error, SQLAlchemyError):
        return await _handle_database_error(request, error)
    code = getattr(error, "code", "internal")
    if code not in CATALOGUE or code == "internal":
        log.error("refused with %r: %s", code, error, extra={"request_id": request.scope.get("request_id")})
        return problem(request.scope, "internal")
    if code == "database_unavailable":
        return await _handle_database_error(request, error)
    if CATALOGUE[code].status >= 500:
        log.error("%s: %s", code, error, extra={"request_id": request.scope.get("request_id")})
    return problem(request.scope, code, str(error), getattr(error, "headers", None), getattr(error, "extra", None))


async def _handle_database_error(request: Request, error: Exception) -> JSONResponse:
    log.error("the database does not answer: %s", error, extra={"request_id": request.scope.get("request_id")})
    return problem(request.scope, "database_unavailable")


async def _handle_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _HTTP.get(error.status_code, "bad_request")
    headers, detail = dict(error.headers or {}), None
    if code == "method_not_allowed":
        headers["Allow"] = ", ".join(sorted(_methods(request.app, request.scope["path"])))
        detail = f"this address answers {headers['Allow']}"
    return problem(request.scope, code, detail, headers)


def _methods(app: FastAPI, path: str) -> Iterator[str]:
    """Return the methods that any route answers at this path; the framework names only those of the first route."""
    methods = set()
    for context in iter_route_contexts(app.routes):
        if context.methods and context.path_regex.match(path):
            methods |= context.methods | ({"HEAD"} if "GET" in context.methods else set())
    return iter(methods)


async def _handle_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found_errors = error.errors()
    for item in found_errors:
        if item["type"] == "missing" and item["loc"][0] == "header" and item["loc"][-1].lower() in _MISSING_HEADERS:
            return problem(request.scope, *_MISSING_HEADERS[item["loc"][-1].lower()])
    if found_errors[0]["loc"][0] == "path":
        return problem(request.scope, "not_found", "there is nothing of this id; it does not look like one")
    content_type = request.headers.get("content-type", "application/json")
    if any(item["loc"][0] == "body" for item in found_errors) and "json" not in content_type:
        return problem(request.scope, "unsupported_media_type", "send the body as application/json")
    errors = [{"path": _path(item["loc"], error.body), "message": _message(item)} for item in found_errors[:MAX_FIELDS]]
    first = f"{errors[0]['path']}: {errors[0]['message']}"
    more = f" (and {len(found_errors) - 1} more)" if len(found_errors) > 1 else ""
    return problem(request.scope, "invalid_request", first + more, extra={"errors": errors})


def _path(location: tuple[int | str, ...], body: Any) -> str:
    parts = list(location)
    if len(parts) > 2 and isinstance(body, dict) and parts[1] == body.get("kind"):
        del parts[1]  # the tag of a union's member, which `kind` chose: it is no key of the body
    return ".".join(str(part)[:100] for part in parts)


def _message(item: Mapping[str, Any]) -> str:
    """Return what the request should have held; never what it held."""
    if item["type"] == "union_tag_invalid":
        return f"{item['ctx']['discriminator']} is not known; known: {item['ctx']['expected_tags']}".replace("'", "")
    if item["type"] == "json_invalid":
        return "is not valid JSON"
    return str(item["msg"]).removeprefix("Value error, ")
