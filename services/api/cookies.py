"""Know a browser by its cookie, and tell the site's own page from another one that makes the browser send it."""

from __future__ import annotations

import hmac

from starlette.requests import Request
from starlette.responses import Response

from services.site import Refusal, Settings, auth, sessions

PATH = "/api/v1/session"
"""Where somebody signs in and out."""
AREA = "/api/v1"
"""Where the cookie goes: models are called below /v2 with a token, or by anybody."""
CSRF = "X-CSRF-Token"
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


def name(settings: Settings) -> str:
    """Return the name of a site's cookie. Two sites of a machine differ by their ports, which cookies do not tell apart."""
    return f"relay_session_{settings.port}"


def set_session(request: Request, response: Response, settings: Settings, text: str) -> None:
    """Let the browser keep a session until it is closed: out of reach of scripts, for the API alone and its own pages.

    It goes over TLS alone where the request came so; behind a proxy, FORWARDED_ALLOW_IPS lets the API know.
    """
    response.set_cookie(
        name(settings), text, path=AREA, httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )


def forget_session(response: Response, settings: Settings) -> None:
    """Let the browser forget it."""
    response.delete_cookie(name(settings), path=AREA)


def require_own_page(request: Request, signed_in: sessions.SignedIn) -> None:
    """Refuse a change that does not carry the session's text against forged requests, which only the own page can read.

    Raises:
        Refusal: `unauthenticated`.
    """
    sent = request.headers.get(CSRF, "")
    if request.method in _READING or hmac.compare_digest(sent.encode(), signed_in.csrf_token.encode()):
        return
    raise Refusal(
        "unauthenticated", f"a session in a browser changes things with the header {CSRF}; programs send a token",
        auth.CHALLENGE,
    )  # fmt: skip
