"""Serve who is signed in at the site's page: sign in with a token or a link, stay, sign out."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from services.api import cookies, schemas
from services.api.deps import Site, Viewer
from services.api.docs import refusals, success
from services.site import Identity, audit, sessions

router = APIRouter(prefix=cookies.PATH, tags=["page"])


@router.post(
    "",
    responses={
        **success(200, "Signed in; the cookie is set.", headers={"Set-Cookie": {"schema": {"type": "string"}}}),
        **refusals(),
    },
)
def sign_in(request: Request, response: Response, site: Site, caller: Viewer) -> schemas.SignedIn:
    """Sign in at the page: a cookie stands for the token of this request from now on, in this browser.

    A link that `relay up` printed is sent as a token would be, and works once.
    """
    with site.database.write() as session:
        if (before := request.cookies.get(cookies.name(site.settings))) is not None:
            sessions.end(session, site.settings.key, before)
        text = sessions.begin(session, site.settings.key, caller.token_id)
        signed_in = sessions.who(session, site.settings.key, text)
        audit.record(session, caller.actor, "session.begin", caller.token_id)
    cookies.set_session(request, response, site.settings, text)
    return _body(signed_in.identity, signed_in.csrf_token)


@router.get("", responses=refusals())
def get_session(request: Request, site: Site, caller: Viewer) -> schemas.SignedIn:
    """Who is signed in, or whose token this is."""
    if "authorization" in request.headers:
        return _body(caller, None)
    with site.database.read() as session:
        signed_in = sessions.who(session, site.settings.key, request.cookies[cookies.name(site.settings)])
    return _body(signed_in.identity, signed_in.csrf_token)


@router.post("/worked", status_code=204, responses=refusals())
def keep_session(request: Request, site: Site, caller: Viewer) -> None:
    """Say that somebody works with the page: its session goes on. What the page reads by itself does not count."""
    if (text := request.cookies.get(cookies.name(site.settings))) is not None:
        with site.database.write() as session:
            sessions.worked(session, site.settings.key, text)


@router.delete("", status_code=204, responses=refusals())
def sign_out(request: Request, response: Response, site: Site, caller: Viewer) -> None:
    """Sign out: the cookie is worth nothing from now on."""
    if (text := request.cookies.get(cookies.name(site.settings))) is not None:
        with site.database.write() as session:
            sessions.end(session, site.settings.key, text)
            audit.record(session, caller.actor, "session.end", caller.token_id)
    cookies.forget_session(response, site.settings)


def _body(identity: Identity, csrf_token: str | None) -> schemas.SignedIn:
    return schemas.SignedIn(
        name=identity.name, role=identity.role, actor=identity.actor, csrf_token=csrf_token, idle_seconds=sessions.IDLE
    )
