"""Know a browser by its cookie, and tell the site's own page from another one that makes the browser send it."""

from __future__ import annotations

import hmac

from starlette.requests import Request
from starlette.responses import Response

from services.site import Refusal, auth, sessions

PATH = "/api/v1/session"
"""Where somebody signs in and out."""
SESSION = "relay_session"
CSRF = "X-CSRF-Token"
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


def set_session(request: Request, response: Response, text: str) -> None:
    """Let the browser keep a session: for this site alone, out of reach of scripts, and for requests of its own pages."""
    response.set_cookie(
        SESSION, text, max_age=int(sessions.LONGEST), httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )


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
