"""What endpoints are given: the site's parts, and who is asking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from anyio import CapacityLimiter
from fastapi import Depends, Header
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CollectorRegistry
from starlette.requests import Request

from services.api.readiness import Probe
from services.site import audit, auth
from services.site.artifacts import ArtifactStore
from services.site.auth import Identity, Role
from services.site.db import Database
from services.site.dispatch import Doorbell
from services.site.errors import Refusal
from services.site.settings import Settings


@dataclass(frozen=True)
class Parts:
    """What one API process works with."""

    settings: Settings
    database: Database
    store: ArtifactStore
    doorbell: Doorbell
    probe: Probe
    registry: CollectorRegistry
    polls: CapacityLimiter
    """Threads that event streams may use: they leave the others to requests."""


async def parts(request: Request) -> Parts:
    """The parts of the application that a request came to."""
    found: Parts = request.app.state.parts
    return found


Site = Annotated[Parts, Depends(parts)]

bearer = HTTPBearer(auto_error=False, scheme_name="token", description="`relay_<id>_<secret>`, made by: relay token create")


def require(role: Role) -> Callable[..., Identity]:
    """A dependency that gives who is asking, and refuses a lower role."""

    def caller(
        request: Request, site: Site, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
    ) -> Identity:
        address = request.client.host if request.client else "unknown"
        identity = _identify(site, given.credentials if given else None, address[:100])
        identity.require(role)
        return identity

    return caller


Viewer = Annotated[Identity, Depends(require("viewer"))]
Operator = Annotated[Identity, Depends(require("operator"))]
Admin = Annotated[Identity, Depends(require("admin"))]


def _identify(site: Parts, token: str | None, address: str) -> Identity:
    """Who holds the token. A valid one always passes: nobody locks out others by failing from their address."""
    settings = site.settings
    if token is None:
        raise Refusal("unauthenticated", "send the header Authorization: Bearer relay_...", {"WWW-Authenticate": "Bearer"})
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


IfMatch = Annotated[
    str,
    Header(
        alias="If-Match",
        pattern=r'^"[0-9]{1,9}"$',
        description="The ETag of what was read: somebody else's change in between is not overwritten.",
        examples=['"1"'],
    ),
]


def etag(row: Any) -> str:
    """The ETag of a row that people edit."""
    return f'"{row.version}"'


def check_version(row: Any, if_match: str) -> None:
    """Raise Refusal `precondition_failed` where a row is not in the version that the client read."""
    if etag(row) != if_match:
        raise Refusal(
            "precondition_failed", f"{row.id} is at version {row.version} by now; read it again", {"ETag": etag(row)}
        )
