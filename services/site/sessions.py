"""Keep who is signed in at the site's page: a browser's cookie stands for a token, as long as somebody works there.

A session's text is 256 random bits, of which the database holds only a keyed hash, as of a token. It ends `IDLE` seconds
after somebody last worked with the page, `LONGEST` seconds after it began, when its token ends, or when somebody signs out.
A link that signs in once is a session that nobody has opened yet.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, delete, not_, or_
from sqlalchemy.orm import Session

from services.site import auth
from services.site.auth import Identity
from services.site.db import SLACK, BrowserSession, lately, now
from services.site.errors import Refusal

IDLE = 1800.0
"""Seconds without work at the page after which its session ends."""
LONGEST = 43200.0
"""Seconds after which a session ends in any case."""
LINK = 600.0
"""Seconds within which a link must be opened."""
LINK_PREFIX = "link_"


@dataclass(frozen=True)
class SignedIn:
    """Says whose session it is, and the text that the page must send with what it changes."""

    identity: Identity
    csrf_token: str


def begin(session: Session, key: bytes, token_id: str) -> str:
    """Begin a session for a token, and forget those that are over; return the session's text, for the cookie."""
    session.execute(delete(BrowserSession).where(_over()))
    text = secrets.token_urlsafe(32)
    moment = now(session)
    session.add(BrowserSession(id=_hash(key, text), token_id=token_id, created_at=moment, seen_at=moment))
    return text


def link(session: Session, key: bytes, token_id: str) -> str:
    """Make the text of a link, which signs in once, as the holder of a token."""
    text = LINK_PREFIX + secrets.token_urlsafe(32)
    session.add(BrowserSession(id=_hash(key, text), token_id=token_id, created_at=now(session), seen_at=None))
    return text


def is_link(session: Session, key: bytes, text: str) -> bool:
    """Return whether a text is a link that nobody has opened yet."""
    row = session.get(BrowserSession, _hash(key, text))
    return row is not None and row.seen_at is None


def follow(session: Session, key: bytes, text: str) -> Identity:
    """Use up a link; return whom it signs in.

    Raises:
        Refusal: `unauthenticated` where it was used, is older than `LINK` seconds, or its token has ended.
    """
    row = session.get(BrowserSession, _hash(key, text), with_for_update=True)
    valid = row is not None and row.seen_at is None and 0 <= now(session) - row.created_at <= LINK
    token_id = row.token_id if row is not None and valid else None
    if row is not None and row.seen_at is None:
        session.delete(row)
    if token_id is None:
        raise Refusal(
            "unauthenticated", "this link was used, or is too old: sign in with a token, or start relay up again",
            auth.CHALLENGE,
        )  # fmt: skip
    return auth.identity(session, token_id)


def who(session: Session, key: bytes, text: str) -> SignedIn:
    """Return whose session a cookie names.

    Raises:
        Refusal: `unauthenticated` where it is over, or its token is.
    """
    row = session.get(BrowserSession, _hash(key, text))
    moment = now(session)
    if (
        row is None or row.seen_at is None or not _lasts(row.seen_at, IDLE, moment)
        or not _lasts(row.created_at, LONGEST, moment)
    ):  # fmt: skip
        raise Refusal("unauthenticated", "you are signed out: sign in again", auth.CHALLENGE)
    return SignedIn(auth.identity(session, row.token_id), _csrf_token(key, text))


def worked(session: Session, key: bytes, text: str) -> None:
    """Note that somebody works with the page: the session goes on."""
    row = session.get(BrowserSession, _hash(key, text))
    if row is not None and row.seen_at is not None:
        row.seen_at = now(session)


def end(session: Session, key: bytes, text: str) -> None:
    """Sign out."""
    session.execute(delete(BrowserSession).where(BrowserSession.id == _hash(key, text)))


def _lasts(since: float, seconds: float, moment: float) -> bool:
    return since - SLACK <= moment < since + seconds


def _over() -> ColumnElement[bool]:
    seen = BrowserSession.seen_at
    return or_(
        not_(lately(BrowserSession.created_at, LONGEST)),
        and_(seen.is_not(None), not_(lately(seen, IDLE))),
        and_(seen.is_(None), not_(lately(BrowserSession.created_at, LINK))),
    )


def _hash(key: bytes, text: str) -> str:
    return hmac.new(key, b"browser session:" + text.encode(), hashlib.sha256).hexdigest()


def _csrf_token(key: bytes, text: str) -> str:
    return hmac.new(key, b"csrf token:" + text.encode(), hashlib.sha256).hexdigest()
