"""Give every request an id, a cap on its body, security headers, a log line and a measured duration, in plain ASGI."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection

from prometheus_client import Histogram
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relay_core.errors import RelayError
from services.api.conditional import names
from services.api.problems import handle_refusal, problem
from services.api.site_page import POLICY

MAX_BODY = 2 << 20
"""The most bytes of a request's body, where the address has no limit of its own."""
DRAIN = 32 << 20
"""The most bytes of a refused body that are still read, so that the client gets to see the answer."""
PACE = 1 << 16
"""The bytes of a body that must come in a second."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that a request may have; metrics count any other as OTHER."""
_HEAD = "relay_head"
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

access = logging.getLogger("relay.access")
log = logging.getLogger(__name__)


class _Exchange:
    """Holds one request and what is known of its answer."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self._send = scope, send
        self.method, self._silent = scope["method"], scope["method"] == "HEAD"
        self.began = time.perf_counter()
        self.status = 0
        self.stream = False
        sent_id = Headers(scope=scope).get("x-request-id", "")
        self.id = sent_id if _REQUEST_ID.fullmatch(sent_id) else secrets.token_hex(8)
        scope["request_id"] = self.id
        if self.method == "HEAD":  # HEAD is answered as GET is, without the body
            self.scope = {**scope, "method": "GET", _HEAD: True}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            self.stream = headers.get("content-type", "").startswith("text/event-stream")
            headers["X-Request-ID"] = self.id
            headers["X-Content-Type-Options"] = "nosniff"
            headers["X-Frame-Options"] = "DENY"
            headers["Content-Security-Policy"] = POLICY
            headers["Referrer-Policy"] = "no-referrer"
            if self.scope["path"].startswith(("/api", "/v2")):
                headers["Cache-Control"] = "no-store"
            if self.status == 200 and self.scope["method"] == "GET" and self._is_known(headers):
                self.status = message["status"] = 304
                self._silent = True
                for name in ("Content-Length", "Content-Type"):
                    del headers[name]
        elif self._silent:
            message = {**message, "body": b""}
        await self._send(message)

    def _is_known(self, answer: MutableHeaders) -> bool:
        """Whether the client has what the answer holds: its If-None-Match names the answer's ETag."""
        unless = ", ".join(Headers(scope=self.scope).getlist("if-none-match"))
        return bool(unless) and "etag" in answer and names(unless, answer["etag"], weakly=True)

    @property
    def route(self) -> str:
        """Return the template of the request's address, such as `/api/v1/jobs/{job_id}`."""
        return getattr(self.scope.get("route"), "path_format", "unmatched")

    def note(self, durations: Histogram) -> None:
        """Write the log line and record the duration, except of event streams, which last as long as their clients want."""
        seconds = time.perf_counter() - self.began
        if not self.stream:
            method = self.method if self.method in METHODS else "OTHER"
            durations.labels(method, self.route, str(self.status)).observe(seconds)
        client = self.scope.get("client")
        facts = {
            "request_id": self.id, "method": self.method, "path": self.scope["path"], "status": self.status,
            "ms": round(seconds * 1000, 1), "client": client[0] if client else None,
        }  # fmt: skip
        access.info("request", extra=facts)


class RequestContext:
    """Is outermost: it gives each request its id and headers, and answers uncaught errors with problem documents."""

    def __init__(self, app: ASGIApp, durations: Histogram) -> None:
        self.app, self.durations = app, durations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        try:
            if (refused := _refused_at_once(scope)) is not None:
                refused.headers["Connection"] = "close"
                await refused(scope, receive, exchange.send)
                return
            await self.app(exchange.scope, receive, exchange.send)
        except Exception:
            log.exception("unhandled error", extra={"request_id": exchange.id})
            if exchange.status:
                raise  # the answer has begun: breaking it off is all that can be done
            await problem(scope, "internal")(scope, receive, exchange.send)
        finally:
            exchange.note(self.durations)


def is_head(scope: Scope) -> bool:
    """Return whether a request is a HEAD, which routes see as GET."""
    return bool(scope.get(_HEAD))


def _refused_at_once(scope: Scope) -> JSONResponse | None:
    """The answer to a request that nobody may make: of an invented method, or whose body has two lengths."""
    if scope["method"] not in METHODS:
        return problem(scope, "method_not_allowed", "there is no such method here", {"Allow": ", ".join(sorted(METHODS))})
    headers = Headers(scope=scope)
    if "transfer-encoding" in headers and "content-length" in headers:
        return problem(scope, "bad_request", "Content-Length and Transfer-Encoding contradict each other: send one")
    return None


class KnownCaller:
    """Identifies the caller of a request that has a body before a byte of the body is read.

    Args:
        app: the application that takes the requests of known callers.
        identify: from a request's scope to its caller; raises Refusal.
    """

    def __init__(self, app: ASGIApp, identify: Callable[[Scope], Awaitable[object]]) -> None:
        self.app, self.identify = app, identify

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] == "http" and scope["method"] in _BODY_METHODS:
            try:
                await self.identify(scope)
            except (RelayError, SQLAlchemyError) as error:
                answer = await handle_refusal(Request(scope), error)
                answer.headers["Connection"] = "close"  # what comes of the body is not read
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)


class BodyPace:
    """Refuses a body that comes slower than any line in use: whoever sends a byte now and then occupies what others need.

    Args:
        app: the application that takes the requests.
        grace: seconds that a body may keep it waiting, besides those that it needs at `PACE`.
    """

    def __init__(self, app: ASGIApp, grace: float) -> None:
        self.app, self.grace = app, grace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        spent, size, more, late = 0.0, 0, True, False

        async def paced() -> Message:
            nonlocal spent, size, more, late
            if not more:
                return await receive()  # waits until the client leaves
            began = time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), self.grace + size / PACE - spent)
            except TimeoutError:
                more, late = False, True
                raise HTTPException(408) from None
            spent += time.monotonic() - began  # what the application itself takes in between does not count
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
            return message

        async def closing(message: Message) -> None:
            if late and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"  # the rest of the body is not waited for
            await send(message)

        await self.app(scope, paced, closing)


class PlainBody:
    """Refuses a body with a Content-Encoding that its address does not decode: it would be taken for something else.

    Args:
        app: the application that takes the other requests.
        encodings: path of an address -> the encodings that it decodes.
    """

    def __init__(self, app: ASGIApp, encodings: Callable[[str], Collection[str]]) -> None:
        self.app, self.encodings = app, encodings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] == "http" and scope["method"] in _BODY_METHODS:
            known = self.encodings(scope["path"])
            sent = ", ".join(Headers(scope=scope).getlist("content-encoding")).strip().lower()
            if sent not in ("", "identity", *known):
                await drain(receive)
                accepted = ", ".join(known) or "identity"
                detail = f"Content-Encoding: the body is {sent[:100]}, and this address reads {accepted}"
                answer = problem(scope, "unsupported_media_type", detail, {"Accept-Encoding": accepted})
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)


class BodyLimit:
    """Refuses a body that is declared, or turns out, to be larger than its address takes.

    Args:
        app: the application that takes the other requests.
        limits: path of an address -> the most bytes that it takes; None: it reads bodies as they come, and caps them itself.
    """

    def __init__(self, app: ASGIApp, limits: Callable[[str], int | None] = lambda path: MAX_BODY) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        limit = self.limits(scope["path"]) if scope["type"] == "http" and scope["method"] in _BODY_METHODS else None
        if limit is None:
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdigit() and int(declared) > limit:
            await drain(receive)
            await problem(scope, "too_large", f"a body may have {limit} bytes here")(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                if message.get("more_body", False):
                    await drain(receive)
                raise HTTPException(413)
            return message

        await self.app(scope, counted, send)


async def drain(receive: Receive) -> None:
    """Read on after a refusal, up to `DRAIN` bytes, so that the client gets to see the answer."""
    size, more = 0, True
    while more and size < DRAIN:
        try:
            message = await receive()
        except HTTPException:  # it comes too slowly
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
