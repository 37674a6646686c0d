"""Read lists in pages, newest first; a page's cursor fits only the list and the filters that it came from."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query
from sqlalchemy import select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from services.api.schemas import Absent
from services.site import Refusal
from services.site.db import Base

Row = TypeVar("Row", bound=Base)
_MAC = 16


@dataclass(frozen=True)
class Paging:
    """Says which page of a list is asked for."""

    limit: int
    cursor: str | None


async def _paging(
    limit: Annotated[int, Query(ge=1, le=200, description="Items of a page.")] = 50,
    cursor: Annotated[str | Absent, Query(max_length=1000, description="`next_cursor` of the page before.")] = None,
) -> Paging:
    return Paging(limit, cursor)


PageQuery = Annotated[Paging, Depends(_paging)]


def read(
    session: Session, key: bytes, table: type[Row], paging: Paging, filters: Mapping[str, Any],
    order: Sequence[InstrumentedAttribute[Any]],
) -> tuple[list[Row], str | None]:  # fmt: skip
    """Return the rows of one page of a table, and the cursor of the next page; None: this is the last one.

    Args:
        session: the database session to read with.
        key: the site's secret, which signs cursors.
        table: the table to list.
        paging: how many rows, and after which cursor.
        filters: column -> value that its rows must have; None: any value.
        order: columns that together are unique; the rows with the largest values come first.

    Raises:
        Refusal: `cursor_invalid` where the cursor was not made here, or for another list or other filters.
    """
    conditions = {name: value for name, value in filters.items() if value is not None}
    statement = select(table).filter_by(**conditions).order_by(*(column.desc() for column in order)).limit(paging.limit + 1)
    filters_digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:16]
    if paging.cursor is not None:
        last = _open_cursor(key, paging.cursor, table.__tablename__, filters_digest)
        statement = statement.where(tuple_(*order) < tuple_(*last))
    rows = list(session.scalars(statement))
    if len(rows) <= paging.limit:
        return rows, None
    rows = rows[: paging.limit]
    last = [getattr(rows[-1], column.key) for column in order]
    return rows, _seal_cursor(key, {"list": table.__tablename__, "filters": filters_digest, "last": last})


def _seal_cursor(key: bytes, content: Mapping[str, Any]) -> str:
    payload = json.dumps(content, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_mac(key, payload) + payload).decode().rstrip("=")


def _open_cursor(key: bytes, cursor: str, table_name: str, filters_digest: str) -> list[Any]:
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raw = b""
    seal, payload = raw[:_MAC], raw[_MAC:]
    if not hmac.compare_digest(seal, _mac(key, payload)):
        raise Refusal("cursor_invalid", "this cursor was not made here; leave it out to start from the newest")
    content = json.loads(payload)
    if (content["list"], content["filters"]) != (table_name, filters_digest):
        raise Refusal("cursor_invalid", "this cursor is of another list, or of other filters")
    return list(content["last"])


def _mac(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, b"page cursor:" + payload, "sha256")[:_MAC]
