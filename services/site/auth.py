"""Bearer tokens: who may do what.

A token is `relay_<id>_<secret>` with 256 random bits of secret. The database holds only HMAC-SHA256 of it under the
site's secret key: what was stolen from the database opens nothing. (A slow password hash guards guessable secrets;
these are not.)
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from services.site.db import Lockout, Token, now
from services.site.errors import Refusal

Role = Literal["viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what the ones before may, and more."""


@dataclass(frozen=True)
class Identity:
    """Who is asking."""

    token_id: str
    name: str
    role: Role

    @property
    def actor(self) -> str:
        """For the audit log and a job's `created_by`."""
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


def revoke_token(session: Session, token_id: str) -> Token:
    """Make a token useless from now on. Raises Refusal `not_found`."""
    row = session.get(Token, token_id)
    if row is None:
        raise Refusal("not_found", f"there is no token {token_id}; see: relay token list")
    row.revoked_at = row.revoked_at or now(session)
    return row


def authenticate(session: Session, key: bytes, text: str) -> Identity:
    """Who holds this token.

    Raises:
        Refusal: `unauthenticated`; the sentence is the same for unknown, expired and revoked.
    """
    parts = text.split("_", 2)
    row = session.get(Token, parts[1]) if len(parts) == 3 and len(parts[1]) <= 64 else None
    right = hmac.compare_digest(_hash(key, text), row.hash if row else "0" * 64)
    moment = now(session)
    alive = row is not None and row.revoked_at is None and (row.expires_at is None or row.expires_at > moment)
    if row is None or not right or not alive:
        raise Refusal(
            "unauthenticated",
            "the token is unknown, expired or revoked; an admin makes one with: relay token create",
            {"WWW-Authenticate": "Bearer"},
        )
    return Identity(row.id, row.name, row.role)  # type: ignore[arg-type]


def check_lockout(session: Session, address: str, failures: int, seconds: float) -> None:
    """For a login that failed: raise Refusal `locked_out` where `address` failed `failures` times within `seconds`."""
    row = session.get(Lockout, address)
    if row is None or row.failures < failures:
        return
    left = row.since + seconds - now(session)
    if left > 0:
        raise Refusal(
            "locked_out", f"locked for {left:.0f} more seconds after {row.failures} failed logins",
            {"Retry-After": str(int(left) + 1)},
        )  # fmt: skip


def note_failure(session: Session, address: str, seconds: float) -> int:
    """Count a failed login of `address`; return how many there were within `seconds`."""
    moment = now(session)
    session.execute(delete(Lockout).where(Lockout.since < moment - seconds))
    insert = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert(Lockout)
    counted = insert.values(address=address, failures=1, since=moment).on_conflict_do_update(
        index_elements=["address"], set_={"failures": Lockout.failures + 1}
    )
    return int(session.scalar(counted.returning(Lockout.failures)) or 0)


def _hash(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
