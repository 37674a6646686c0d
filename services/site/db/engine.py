"""Open connections and transactions, on SQLite and PostgreSQL alike.

On SQLite a transaction that reads and then writes fails at once with "database is locked" when another one wrote in
between, whatever the timeout. So writers begin with BEGIN IMMEDIATE, and the writers of one process take turns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from relay_core.errors import RelayError

BUSY_SECONDS = 15
"""Seconds that SQLite waits for another process's transaction; a writer asks again for up to `PATIENCE` seconds."""
PATIENCE = 60.0


class DatabaseError(RelayError):
    """Raised where the database cannot be reached, or refuses its settings."""

    code = "database_unavailable"


class Database:
    """Keeps a pool of connections to the site's database.

    `read()` and `write()` give a session in a transaction; `write()` commits at the end of its block, and rolls back
    where the block raises.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self.sqlite = url.get_backend_name() == "sqlite"
        if self.sqlite:
            options: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS}, "pool_size": 16, "max_overflow": 32}
        else:
            options = {"pool_pre_ping": True, "pool_size": 10, "max_overflow": 20, "connect_args": _limits(url)}
        self.engine: Engine = create_engine(url, **options)
        self._line = threading.Lock() if self.sqlite else nullcontext()
        if self.sqlite:
            event.listen(self.engine, "connect", _sqlite_connection)
            event.listen(self.engine, "begin", _sqlite_begin)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Give a session that only reads."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Give a session that writes; everything in the block is committed, or nothing.

        Raises:
            DatabaseError: the database stayed locked for `PATIENCE` seconds, or cannot be reached.
        """
        with self._line, Session(self.engine, expire_on_commit=False) as session:
            self._begin(session)
            with session.begin() if not session.in_transaction() else nullcontext():
                yield session
            session.commit()

    def _begin(self, session: Session) -> None:
        """Take the write lock. Nothing has been written yet, so trying again is safe."""
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                session.connection(execution_options={"writes": True})
                return
            except OperationalError as error:
                session.rollback()
                if "locked" not in str(error) or time.monotonic() > give_up:
                    raise DatabaseError("the database is not available") from error

    def close(self) -> None:
        """Close the pool of connections."""
        self.engine.dispose()


def _limits(url: URL) -> dict[str, Any]:
    """Return PostgreSQL's options, by which a frozen or cut-off client holds no lock for long and nobody waits for ever."""
    limits = "-c idle_in_transaction_session_timeout=15s -c lock_timeout=15s -c statement_timeout=60s"
    return {
        "client_encoding": "utf8",
        "connect_timeout": 5,
        "keepalives_idle": 5,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
        "options": f"{url.query.get('options', '')} {limits}".strip(),
    }


def _sqlite_connection(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's begin event starts transactions, not the driver
    cursor = connection.cursor()
    mode = cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise DatabaseError(f"SQLite answers journal mode {mode!r}; the database must lie on a local disk")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
    cursor.close()


def _sqlite_begin(connection: Any) -> None:
    immediate = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
