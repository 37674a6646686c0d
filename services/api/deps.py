"""Provide what endpoints depend on: the site's parts, the caller's identity, and headers that guard changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Header
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.types import Scope

from relay_core.inference import Decoders
from services.api import cookies
from services.api.conditional import TAGS, names
from services.api.inference import Host, Intake, Turns
from services.api.readiness import Probe
from services.site import ArtifactStore, Doorbell, Identity, Refusal, Role, Settings, audit, auth, sessions
from services.site.db import Database


@dataclass(frozen=True)
class ServiceParts:
    """Holds everything that one API process works with, from the settings to the models in memory."""

    settings: Settings
    database: Database
    store: ArtifactStore
    doorbell: Doorbell
    probe: Probe
    registry: CollectorRegistry
    polls: CapacityLimiter
    """Limits the threads that event streams may use, so that the others are left to requests."""
    host: Host
    """Holds the models in memory."""
    predictions: CapacityLimiter
    """Limits how many images that people upload are predicted at once, in threads of their own; they may be large."""
    turns: Turns
    """Lets each caller have one image predicted at a time."""
    intake: Intake
    """Limits the bytes of images that are in memory at once."""
    decoders: Decoders
    """Decode images that people upload, in processes of their own."""


async def parts(request: Request) -> ServiceParts:
    """Return the parts of the application that received the request."""
    service_parts: ServiceParts = request.app.state.parts
    return service_parts


Site = Annotated[ServiceParts, Depends(parts)]

bearer = HTTPBearer(auto_error=False, scheme_name="token", description="`relay_<id>_<secret>`, made by: relay token create")


def client_address(request: Request) -> str:
    """Return the address that a request comes from, as `auth.network` counts it."""
    return auth.network(request.client.host if request.client else "unknown")


async def identify(scope: Scope) -> Identity | None:
    """Identify the caller of a request from its headers alone, and keep the identity with the request.

    Returns:
        The identity; None for an anonymous caller, where such may come in.

    Raises:
        Refusal: as `require`'s dependency raises it.
    """
    request = Request(scope)
    site: ServiceParts = request.app.state.parts
    credentials = await bearer(request)
    if credentials is None and site.settings.serve_anonymous and scope["path"].startswith("/v2/"):
        return None
    identity = await to_thread.run_sync(_identify, site, request, credentials)
    scope["relay_identity"] = identity
    return identity


def require(role: Role) -> Callable[..., Identity]:
    """Build a dependency that returns the caller's identity and refuses callers whose role is lower than `role`."""

    def caller(
        request: Request, site: Site, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
    ) -> Identity:
        identity: Identity | None = request.scope.get("relay_identity")
        if identity is None:
            identity = _identify(site, request, credentials)
        identity.require(role)
        return identity

    return caller


Viewer = Annotated[Identity, Depends(require("viewer"))]
Operator = Annotated[Identity, Depends(require("operator"))]
Admin = Annotated[Identity, Depends(require("admin"))]


def _caller_of_models(
    request: Request, site: Site, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> Identity:
    if credentials is None and site.settings.serve_anonymous:
        return Identity("-", "anonymous", "viewer")
    return require("viewer")(request, site, credentials)


ModelCaller = Annotated[Identity, Depends(_caller_of_models)]
"""Gives who calls a model by the Open Inference Protocol: a viewer, or anybody where `serve_anonymous` is set."""


def _identify(site: ServiceParts, request: Request, credentials: HTTPAuthorizationCredentials | None) -> Identity:
    """Return who sends a request: the holder of its token, or who is signed in at the page in its browser.

    A valid token always passes, so that failed logins from an address lock out nobody else.

    Raises:
        Refusal: `unauthenticated`, or `locked_out` after too many failed logins from the address.
    """
    settings, address = site.settings, client_address(request)
    if credentials is None:
        if (text := request.cookies.get(cookies.name(settings))) is None:
            raise Refusal("unauthenticated", "send the header Authorization: Bearer relay_...", auth.CHALLENGE)
        with site.database.read() as session:
            signed_in = sessions.who(session, settings.key, text)
        cookies.require_own_page(request, signed_in)
        return signed_in.identity
    token = credentials.credentials
    if token.startswith(sessions.LINK_PREFIX) and (request.method, request.url.path) == ("POST", cookies.PATH):
        with site.database.read() as session:
            known = sessions.is_link(session, settings.key, token)
        if known:  # what nobody made costs no turn among the database's writers
            with site.database.write() as session:
                return sessions.follow(session, settings.key, token)
    with site.database.read() as session:
        try:
            return auth.authenticate(session, settings.key, token)
        except Refusal as refusal:
            failed = refusal
        auth.check_lockout(session, address, settings.lockout_failures, settings.lockout_seconds)
    with site.database.write() as session:
        failures = auth.note_failure(session, address, settings.lockout_seconds)
        if failures == settings.lockout_failures:
            audit.record(session, "nobody", "login.failed", address, failures=failures)
    raise failed


def need_room(site: ServiceParts, size: int = 0) -> None:
    """Raise Refusal `storage_full` where the store would have less than `min_free_mib` left after `size` more bytes.

    Where its volume is away that is `volume_away`.
    """
    site.store.require_mounted()
    free = site.store.free_mib()
    if free - (size >> 20) < site.settings.min_free_mib:
        needed = f"{site.settings.min_free_mib} are needed" + (f" besides the {size >> 20} that come" if size >> 20 else "")
        raise Refusal("storage_full", f"{free} MiB are free, {needed}; make room")


IdempotencyKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,200}$",
        description="The same key with the same body gives the same job, however often it is sent.",
        examples=["9f1c2b9e-7a55-4d0c-8a3e-0d5f6f3c1b77"],
    ),
]

IfMatch = Annotated[
    str,
    Header(
        alias="If-Match",
        max_length=1000,
        pattern=TAGS,
        description="The ETag of what was read: somebody else's change in between is not overwritten.",
        examples=['"1"'],
    ),
]


def etag(row: Any) -> str:
    """Return the ETag of a row that people edit: its version in double quotes."""
    return f'"{row.version}"'


def check_version(row: Any, if_match: str) -> None:
    """Raise Refusal `precondition_failed` where a row is not in the version that the client read."""
    if not names(if_match, etag(row), weakly=False):
        raise Refusal(
            "precondition_failed", f"{row.id} is at version {row.version} by now; read it again", {"ETag": etag(row)}
        )
