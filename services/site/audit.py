"""Keep the audit log: who did what, in rows that are only ever added, each chained to the one before by its hash."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import time
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from services.site.db import AuditRecord, now
from services.site.errors import Refusal

GENESIS = "0" * 64
_LOCK = 0x72656C6179  # "relay": PostgreSQL's advisory lock of the chain's end


def record(session: Session, actor: str, action: str, subject: str, **detail: Any) -> AuditRecord:
    """Add a row to the audit log, in the transaction of the change that it records."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    last = session.scalars(select(AuditRecord).order_by(AuditRecord.seq.desc()).limit(1)).first()
    row = AuditRecord(
        seq=last.seq + 1 if last else 1,
        at=round(now(session), 3),
        actor=actor,
        action=action,
        subject=subject,
        detail=detail,
        previous=last.hash if last else GENESIS,
    )
    row.hash = row_hash(row)
    session.add(row)
    session.flush()
    return row


def operator(command: str) -> str:
    """Return who runs a command on the site's machine, as the audit log holds them: the user of the operating system.

    In a container everybody is the same user; RELAY_OPERATOR, else sudo's SUDO_USER, adds for whom, as the caller says.
    """
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = f"uid {os.getuid()}"
    named = os.environ.get("RELAY_OPERATOR") or os.environ.get("SUDO_USER") or ""
    named = "".join(filter(str.isprintable, named))[:100]
    return f"{user}{f' for {named}' if named else ''} ({command})"


def row_hash(row: AuditRecord) -> str:
    """Return the SHA-256, in hex, of the row's canonical JSON, which includes the hash of the row before."""
    content = [row.seq, row.at, row.actor, row.action, row.subject, row.detail, row.previous]
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _moment(witness: Mapping[str, Any]) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(witness["at"]))


def verify(session: Session, head: str | None = None, signed: Iterable[Mapping[str, Any]] = ()) -> tuple[int, str]:
    """Check the whole chain; return its length and the hash of its last row.

    Args:
        session: the database session to read with.
        head: the hash of a row, noted down earlier; where it is not in the chain, the chain's end was cut off.
        signed: heads that the site signed, {seq, hash, at}; a chain that was rewritten does not fit them.

    Raises:
        Refusal: `audit_broken`; the message names the first row that does not fit, or the hash that is missing.
    """
    rows = session.scalars(select(AuditRecord).order_by(AuditRecord.seq).execution_options(yield_per=500))
    return verify_rows(rows, head, signed)


def verify_rows(
    rows: Iterable[AuditRecord], head: str | None = None, signed: Iterable[Mapping[str, Any]] = ()
) -> tuple[int, str]:
    """Check a chain whose rows come from anywhere, in their order, as `verify` does."""
    previous, length, head_seen = GENESIS, 0, head is None
    witnesses: dict[int, list[Mapping[str, Any]]] = {}
    for witness in signed:
        witnesses.setdefault(witness["seq"], []).append(witness)
    for row in rows:
        if row.seq != length + 1:
            raise Refusal("audit_broken", f"audit row {length + 1} is missing")
        if row.previous != previous or row.hash != row_hash(row):
            raise Refusal("audit_broken", f"audit row {row.seq} was changed, or the one before it")
        previous, length = row.hash, row.seq
        head_seen = head_seen or previous == head
        for witness in witnesses.pop(length, ()):
            if witness["hash"] != previous:
                raise Refusal(
                    "audit_broken",
                    f"the log was rewritten: row {length} is not the one whose hash this site signed at {_moment(witness)}",
                )
    if witnesses:
        witness = witnesses[max(witnesses)][0]
        raise Refusal(
            "audit_broken",
            f"rows were cut off: at {_moment(witness)} this site signed row {witness['seq']}, and the log has {length} rows",
        )
    if not head_seen:
        raise Refusal("audit_broken", f"no audit row has the hash {head}: rows were cut off, or it is another site's")
    return length, previous
