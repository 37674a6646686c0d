"""Bring a database to this version's tables, with Alembic."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from services.site.db.engine import Database

_LOCK = 0x6D696772  # "migr": PostgreSQL's advisory lock, so that two processes do not migrate at once


def config() -> Config:
    """Make Alembic's configuration in code, so that no alembic.ini is needed."""
    result = Config()
    result.set_main_option("script_location", str(Path(str(resources.files("services.site.db") / "migrations"))))
    return result


def upgrade(database: Database, revision: str = "head") -> None:
    """Migrate up to `revision`; does nothing where the database is there already."""
    _run(database, lambda settings: command.upgrade(settings, revision))


def upgrade_within(connection: Connection, revision: str = "head") -> None:
    """Migrate up to `revision` in the transaction of a connection, which the caller commits."""
    settings = config()
    settings.attributes["connection"] = connection
    command.upgrade(settings, revision)


def known() -> set[str]:
    """Return the revisions that this version of the software knows."""
    return {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}


def downgrade(database: Database, revision: str = "base") -> None:
    """Migrate down to `revision`."""
    _run(database, lambda settings: command.downgrade(settings, revision))


def _run(database: Database, step: object) -> None:
    if database.sqlite and database.url.database:
        Path(database.url.database).parent.mkdir(parents=True, exist_ok=True)
    settings = config()
    with database.engine.connect().execution_options(writes=True) as connection:
        if not database.sqlite:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        settings.attributes["connection"] = connection
        step(settings)  # type: ignore[operator]
        connection.commit()


def head() -> str:
    """Return the revision of the tables that this version of the software needs."""
    return str(ScriptDirectory.from_config(config()).get_current_head())


def current(database: Database) -> str | None:
    """Return the revision of the database's tables; None before the first migration."""
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()
