"""Sign the head of the audit log from time to time, so that a log which was rewritten as a whole shows.

Whoever owns the database can rewrite every row and its hash, and the chain is whole again. A signed head says which hash
row number N had at a time; it lies in a file that the database's owner cannot write, is shipped to another machine, and
cannot be made anew without the site's key. A worker signs, as it has the key; the API can neither sign nor reach the file.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging.handlers import SYSLOG_UDP_PORT, SysLogHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sqlalchemy import select

from relay_core.errors import BundleError
from relay_core.files import write_atomically
from services.site import audit
from services.site.db import AuditRecord, Database
from services.site.errors import Refusal
from services.site.settings import Settings

if TYPE_CHECKING:
    from relay_core.bundle import Card

FILE = "audit-heads.jsonl"
SENT = "audit-heads.sent"
"""File with how many bytes of `FILE` went to syslog, so that a head which could not be sent goes with the next."""
KIND = "application/vnd.relay.audit-head+json"
DAILY = 86400.0
"""Seconds after which a head is signed anew though no row was added: a file that stops growing is a sign too."""
log = logging.getLogger(__name__)


def seal(database: Database, settings: Settings) -> dict[str, Any] | None:
    """Sign the audit log's head and append it to the file; return the statement, or None where none is due, or no key there.

    Nothing is signed where the log no longer continues the head that was signed last. A head that cannot be sent to syslog
    stays in the file all the same, and goes with the next one.

    Raises:
        Refusal: `audit_broken`: the log was rewritten or cut off since.
        BundleError: `key_locked`.
        OSError: the file cannot be written.
    """
    from relay_core.bundle import KeyFolder, sign_statement

    keys = KeyFolder(settings.keys_folder, ask=_nobody)
    if not keys.exists:
        return None
    with _locked(settings.heads_folder / FILE) as file:
        last, moment = _last(file), round(time.time(), 3)
        if last is not None and abs(moment - last["at"]) < settings.heads_seconds:
            return None
        row = _head_after(database, last)
        if row is None or (last is not None and last["seq"] == row.seq and abs(moment - last["at"]) < DAILY):
            return None
        head = {"format": 1, "site": keys.card.name, "seq": row.seq, "hash": row.hash, "at": moment}
        line = sign_statement(head, KIND, keys)
        start = file.seek(0, os.SEEK_END)
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
        if settings.heads_syslog:
            try:
                _ship_unsent(settings.heads_syslog, file, start, settings.heads_folder / SENT)
            except (OSError, ValueError) as error:
                log.warning(
                    "the audit log's head of row %d is signed, in %s, but was not sent to %s: %s; it goes with the next one",
                    row.seq, settings.heads_folder / FILE, settings.heads_syslog, error,
                )  # fmt: skip
    return head


def _ship_unsent(address: str, file: BinaryIO, start: int, sent: Path) -> None:
    """Send the lines that were not sent yet; `start` is where the newest begins, and the first that is ever to be sent."""
    if sent.is_file():
        start = min(start, int(sent.read_text(encoding="ascii")))
    else:
        write_atomically(sent, str(start).encode())
    file.seek(start)
    for line in file.read().splitlines(keepends=True):
        ship(address, f"relay audit head {line.decode().rstrip()}")
        start += len(line)
        write_atomically(sent, str(start).encode())


def _nobody(prompt: str) -> str:
    raise BundleError("key_locked", "a worker asks nobody for the passphrase: set RELAY_KEY_PASSPHRASE_FILE")


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open the file to append to; one worker at a time has it. A line that a power loss tore stays a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        yield file


def _last(file: BinaryIO) -> dict[str, Any] | None:
    """Return what the last readable line states; its signature is checked by whoever verifies, not here."""
    file.seek(0)
    for line in reversed(file.read().splitlines()):
        try:
            statement: dict[str, Any] = json.loads(b64decode(json.loads(line)["payload"]))
            if isinstance(statement["seq"], int) and isinstance(statement["at"], int | float) and statement["hash"]:
                return statement
        except (ValueError, KeyError, TypeError):
            continue
    return None


def _head_after(database: Database, last: dict[str, Any] | None) -> AuditRecord | None:
    """Return the log's last row, after a check that its rows continue the head that was signed last."""
    seq, previous = (last["seq"], last["hash"]) if last is not None else (0, audit.GENESIS)
    with database.read() as session:
        row = session.get(AuditRecord, seq) if seq else None
        if seq and (row is None or row.hash != previous or audit.row_hash(row) != previous):
            raise Refusal(
                "audit_broken", f"row {seq} of the audit log is not the one whose hash was signed; see: relay audit verify"
            )
        later = select(AuditRecord).where(AuditRecord.seq > seq).order_by(AuditRecord.seq)
        for row in session.scalars(later.execution_options(yield_per=500)):
            if row.seq != seq + 1 or row.previous != previous or row.hash != audit.row_hash(row):
                raise Refusal("audit_broken", f"row {row.seq} of the audit log was changed, or the one before it")
            seq, previous = row.seq, row.hash
    return row


def ship(address: str, text: str) -> None:
    """Send a line to syslog: a socket's path (/dev/log), or HOST or HOST:PORT, by UDP. Raises OSError."""

    class Handler(SysLogHandler):
        def handleError(self, record: logging.LogRecord) -> None:
            raise  # noqa: PLE0704 - called while the error is handled

    host, _, port = address.rpartition(":") if ":" in address else (address, "", str(SYSLOG_UDP_PORT))
    handler = Handler(address if address.startswith("/") else (host, int(port)), SysLogHandler.LOG_AUTH)
    try:
        handler.emit(logging.makeLogRecord({"msg": text, "levelno": logging.INFO, "levelname": "INFO"}))
    finally:
        handler.close()


def read(path: Path, cards: Sequence[Card]) -> tuple[list[dict[str, Any]], int]:
    """Read a file of signed heads and verify each; return what they state, and the number of lines that are no statements.

    Raises:
        Refusal: `audit_broken`: a line was changed, or signed with a key that none of the cards has.
    """
    from relay_core.bundle import read_statement

    heads, torn = [], 0
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            heads.append(read_statement(line, KIND, cards, f"line {number} of {path.name}"))
        except BundleError as error:
            if error.code != "bundle_damaged":
                raise Refusal("audit_broken", str(error)) from None
            torn += 1
    return heads, torn
