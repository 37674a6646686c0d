"""Issue and check bearer tokens, which decide who may do what.

A token is `relay_<id>_<secret>` with 256 random bits of secret. The database holds only its HMAC-SHA256 under the
site's secret key: nobody can log in with what was stolen from the database. (A slow password hash is for secrets that can
be guessed; these cannot.)
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import Literal, get_args

from sqlalchemy import delete, func, not_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from services.site.db import SLACK, Lockout, Token, lately, now
from services.site.errors import Refusal

Role = Literal["viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""The roles in rising order: each may do what the roles before it may, and more."""
MOST_ADDRESSES = 10_000
"""Number of addresses whose failed logins are counted one by one."""
OTHERS = "all others"
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="relay"'}
"""The header of an answer to a request without a valid token (RFC 6750)."""


@dataclass(frozen=True)
class Identity:
    """Identifies who makes a request: the id, name and role of a valid token."""

    token_id: str
    name: str
    role: Role

    @property
    def actor(self) -> str:
        """Return the name and id of the token, as the audit log and a job's `created_by` hold them."""
        return f"{self.name} ({self.token_id})"

    def require(self, role: Role) -> None:
        """Raise Refusal `forbidden` for a lower role."""
        if ROLES.index(self.role) < ROLES.index(role):
            raise Refusal("forbidden", f"this needs the role {role}; the token {self.name!r} has {self.role}")


def create_token(session: Session, key: bytes, name: str, role: Role, days: float | None = None) -> tuple[Token, str]:
    """Make a token; the text is returned once and kept nowhere."""
    token_id = secrets.token_hex(5)
    text = f"relay_{token_id}_{secrets.token_urlsafe(32)}"
    moment = now(session)
    row = Token(id=token_id, name=name, role=role, hash=_hash(key, text), expires_at=moment + days * 86400 if days else None)
    session.add(row)
    session.flush()
    return row, text


def token_named(session: Session, name: str) -> str | None:
    """Return the id of a valid token of this name; None: there is none."""
    moment = now(session)
    rows = session.scalars(select(Token).where(Token.name == name, Token.revoked_at.is_(None)))
    return next((row.id for row in rows if _holds(row, moment)), None)


def revoke_token(session: Session, token_id: str) -> Token:
    """Make a token useless from now on. Raises Refusal `not_found`."""
    row = session.get(Token, token_id)
    if row is None:
        raise Refusal("not_found", f"there is no token {token_id}; see: relay token list")
    row.revoked_at = row.revoked_at or now(session)
    return row


def authenticate(session: Session, key: bytes, text: str) -> Identity:
    """Return the identity that belongs to the text of a token.

    Raises:
        Refusal: `unauthenticated`; the message is the same for an unknown, an expired and a revoked token.
    """
    parts = text.split("_", 2)
    row = session.get(Token, parts[1]) if len(parts) == 3 and len(parts[1]) <= 64 else None
    matches = hmac.compare_digest(_hash(key, text), row.hash if row else "0" * 64)
    return _identity(session, row if matches else None)


def identity(session: Session, token_id: str) -> Identity:
    """Return the identity that a token gives, for whoever has shown it before. Raises Refusal as `authenticate`."""
    return _identity(session, session.get(Token, token_id))


def _identity(session: Session, row: Token | None) -> Identity:
    if row is None or row.revoked_at is not None or not _holds(row, now(session)):
        raise Refusal(
            "unauthenticated",
            "the token is unknown, expired or revoked; an admin makes one with: relay token create",
            {"WWW-Authenticate": f'{CHALLENGE["WWW-Authenticate"]}, error="invalid_token"'},
        )
    return Identity(row.id, row.name, row.role)  # type: ignore[arg-type]


def _holds(row: Token, moment: float) -> bool:
    """Return whether a token has not expired. With a clock behind the time at which it was made, nobody knows: it has."""
    return row.expires_at is None or row.created_at - SLACK <= moment < row.expires_at


def network(address: str) -> str:
    """Return what failed logins and connections are counted by: an IPv4 address, or the /64 that an IPv6 address lies in.

    Whoever has one IPv6 address has 2^64 of them.
    """
    try:
        found = ip_address(address)
    except ValueError:
        return address[:100]
    if isinstance(found, IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or IPv6Network((int(found), 64), strict=False))


def check_lockout(session: Session, address: str, failures: int, seconds: float) -> None:
    """Raise Refusal `locked_out` where `address` failed `failures` times within `seconds`; call it after a failed login."""
    row = session.get(Lockout, address) or session.get(Lockout, OTHERS)
    if row is None or row.failures < failures:
        return
    remaining = row.since + seconds - now(session)
    if 0 < remaining <= seconds + SLACK:  # more: the clock was set back since
        raise Refusal(
            "locked_out", f"locked for {remaining:.0f} more seconds after {row.failures} failed logins",
            {"Retry-After": str(int(remaining) + 1)},
        )  # fmt: skip


def note_failure(session: Session, address: str, seconds: float, most: int = MOST_ADDRESSES) -> int:
    """Count a failed login of `address`; return how many there were within `seconds`.

    Beyond `MOST_ADDRESSES` all new addresses are counted together.
    """
    moment = now(session)
    session.execute(delete(Lockout).where(not_(lately(Lockout.since, seconds))))
    if session.get(Lockout, address) is None and (session.scalar(select(func.count()).select_from(Lockout)) or 0) >= most:
        address = OTHERS
    insert = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert(Lockout)
    upsert = insert.values(address=address, failures=1, since=moment).on_conflict_do_update(
        index_elements=["address"], set_={"failures": Lockout.failures + 1}
    )
    return int(session.scalar(upsert.returning(Lockout.failures)) or 0)


def _hash(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
