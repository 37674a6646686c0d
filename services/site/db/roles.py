"""Give API and workers roles of their own in PostgreSQL: they work with rows, and only the owner changes tables.

Both may add to the audit log and read it; neither can change, remove or empty it, drop its triggers, or switch them off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import inspect
from sqlalchemy.exc import ProgrammingError

from services.site.db.engine import Database, DatabaseError

INSUFFICIENT_PRIVILEGE = "42501"
MANAGED = ("SELECT", "INSERT", "UPDATE", "DELETE")


@dataclass(frozen=True)
class Part:
    """Describes a part of the service as the database sees it: its rights where they differ from `MANAGED`."""

    name: str
    rights: dict[str, tuple[str, ...]]


_READ, _ADD = ("SELECT",), ("SELECT", "INSERT")
PARTS = (
    Part("api", {"audit": _ADD, "alembic_version": _READ, "roster": _READ}),
    Part("worker", {"audit": _ADD, "alembic_version": _READ, "tokens": (), "lockouts": (), "browser_sessions": ()}),
)


@contextmanager
def owners_work(database: Database, command: str) -> Iterator[None]:
    """Say in one line, where the block lacks a right, that a command is the owner's.

    Raises:
        DatabaseError: the database's user has not the rights that the block needs.
    """
    try:
        yield
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != INSUFFICIENT_PRIVILEGE:
            raise
        reason = f"{error.orig}".splitlines()[0]
        raise DatabaseError(
            f"{reason}: the database's user {database.url.username} may not do that; run {command} as the database's owner"
        ) from error


def role_of(owner: str, part: str) -> str:
    """Return the name of a part's role: `relay_api` and `relay_worker` where the owner is `relay`."""
    return f"{owner}_{part}"


def grant(database: Database, passwords: dict[str, str]) -> list[str]:
    """Make the roles of API and workers, or renew their rights and passwords; return their names.

    Every table of the schema is covered, so this is called after each migration.

    Args:
        database: the site's database, opened as its owner.
        passwords: part -> password; both parts.

    Raises:
        DatabaseError: it is SQLite, which knows no roles; or its owner may not make them, or give rights to a table.
    """
    if database.sqlite:
        raise DatabaseError("SQLite has no roles: they are for PostgreSQL")
    owner = str(database.url.username)
    with database.engine.connect() as connection:
        tables = inspect(connection).get_table_names()
        schema = str(connection.exec_driver_sql("SELECT current_schema()").scalar())
        driver: Any = connection.connection.dbapi_connection  # role names and passwords cannot be parameters
        try:
            _grant(driver, owner, schema, tables, passwords)
        except psycopg.Error as error:
            reason = str(error).partition("\n")[0]
            raise DatabaseError(
                f"{reason}: {owner} cannot give API and workers roles of their own; it must own the schema {schema} and its "
                f"tables, and may make roles after a superuser's ALTER ROLE {owner} CREATEROLE (from PostgreSQL 16 on also "
                f"GRANT {role_of(owner, 'api')}, {role_of(owner, 'worker')} TO {owner} WITH ADMIN OPTION where others made "
                "them); then: relay migrate"
            ) from error
        connection.commit()
    return [role_of(owner, part.name) for part in PARTS]


def _grant(driver: psycopg.Connection, owner: str, schema: str, tables: list[str], passwords: dict[str, str]) -> None:
    run = driver.execute
    run(sql.SQL("REVOKE ALL ON SCHEMA {} FROM PUBLIC").format(sql.Identifier(schema)))
    for part in PARTS:
        name = role_of(owner, part.name)
        role = sql.Identifier(name)
        known = run("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).fetchone()
        verb = sql.SQL("ALTER" if known else "CREATE")  # a new role has no right but to log in
        # what the password is checked with, not the password: the server's log shows a statement that fails
        verifier = driver.pgconn.encrypt_password(passwords[part.name].encode(), name.encode(), b"scram-sha-256").decode()
        run(sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, role, sql.Literal(verifier)))
        run(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(schema), role))
        for table in tables:
            where = sql.Identifier(schema, table)
            run(sql.SQL("REVOKE ALL ON {} FROM {}").format(where, role))
            if rights := part.rights.get(table, MANAGED):
                run(sql.SQL("GRANT {} ON {} TO {}").format(sql.SQL(", ".join(rights)), where, role))
