"""Restore a site from a backup: everything is verified first, and what was there is moved aside, never deleted.

Artifacts are added first, then the database, then the keys. The new database is made and checked beside the old one and
takes its place in one step: after a loss of power one of them is there, whole, and the restore can be done again. Its jobs
that were running wait again; nothing is deleted from the store before an administrator has confirmed the restore
(`sweep.confirm`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from relay_core.files import replace_with, sync
from services.site import audit, backup, leases, restored_keys, sweep, volumes, workers
from services.site.artifacts import ArtifactStore
from services.site.db import Artifact, AuditRecord, Base, Database, Job, Token, Volume, migrate, roles
from services.site.errors import Refusal
from services.site.jobs import HELD
from services.site.settings import Settings

LEAP = 1000
"""Added to the fencing tokens of jobs that may run again, so that they lie above those of attempts after the backup."""


def restore(
    folder: Path,
    settings: Settings,
    *,
    replace: bool = False,
    adopt: bool = False,
    show: backup.Show = lambda done, total: None,
) -> list[str]:
    """Restore a site from the backup `folder`; return what was done, a sentence each.

    Args:
        folder: a backup, from `backup.create`.
        settings: of the site to restore into; its database may be of another kind than the one that was backed up.
        replace: whether a site that is there already is moved aside.
        adopt: whether volumes that lack the mark which the database that is there knows, or have another site's, are the
            right ones.
        show: is told (done, total) in bytes.

    Raises:
        Refusal: `backup_damaged`, `audit_broken`: nothing was changed; `in_use` where a site is there and `replace` is not
            given, or one runs; `volume_away` where a volume of the site that is there is not mounted; `not_ready` for a
            backup of a later version.
    """
    manifest = backup.verify(folder, show)
    if manifest["revision"] not in migrate.known():
        raise Refusal("not_ready", f"{folder} is of version {manifest['version']}, which is newer; restore it with that one")
    stamp = f"{backup.ASIDE}{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    with volumes.locked(settings.home) if settings.embedded else contextlib.nullcontext():
        used, away = _in_use(settings, manifest)
        if used and not replace:
            raise Refusal("in_use", f"a site is there already ({', '.join(used)}); with --replace it is moved aside")
        if away and not adopt:
            raise Refusal("volume_away", "; ".join(away))
        said = _artifacts(folder, manifest, ArtifactStore(settings.artifact_folder))
        put_rows = _sqlite if settings.database.get_backend_name() == "sqlite" else _postgresql
        said += put_rows(folder, manifest, settings, stamp if used else None)
        said += restored_keys.restore(folder, settings, stamp if used else None)
        sweep.hold(settings.artifact_folder, manifest["created_at"])
        _mark_volumes(settings)
    return [
        *said,
        f"tokens are those of {manifest['created_at']}: revoke again what was revoked since",
        "nothing is deleted from the store until: relay artifacts confirm",
    ]


def _in_use(settings: Settings, manifest: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return what of a site is there already, and which of its volumes are away.

    Raises:
        Refusal: `in_use` where one of its workers was seen lately.
    """
    used: list[str] = []
    away: list[str] = []
    database = Database(settings.database)
    if not database.sqlite or Path(str(settings.database.database)).exists():
        try:
            with database.read() as session:
                if migrate.current(database) in migrate.known() and workers.lately(session, settings.lately):
                    raise Refusal("in_use", "a worker of the site was seen lately; stop the site, and wait a minute")
                tables = inspect(session.connection()).get_table_names()
                if "audit" in tables and session.scalar(select(AuditRecord.seq).limit(1)):
                    used.append("its database")
                if {"audit", "volumes"}.issubset(tables):
                    away += volumes.marks_away(session, settings, "relay restore --adopt").values()
        except SQLAlchemyError as error:
            if not database.sqlite:
                raise
            used.append(f"a database that cannot be read: {type(error).__name__}")
        finally:
            database.close()
    if any(path.is_file() for path in settings.keys_folder.glob("*")):
        used.append("its keys")
    store = ArtifactStore(settings.artifact_folder)
    if any(f"artifacts/{path.parent.name}{path.name}" not in manifest["files"] for path in store.folder.glob("sha256/??/*")):
        used.append("other artifacts")
    return used, away


def _artifacts(folder: Path, manifest: dict[str, Any], store: ArtifactStore) -> list[str]:
    """Add the artifacts of a backup to the store. They are named by their bytes, so that those that are there may stay."""
    count = 0
    for name in manifest["files"]:
        kind, _, digest = name.partition("/")
        if kind != "artifacts":
            continue
        with contextlib.suppress(Refusal, OSError):  # a bad sector, for one: the good copy takes its place
            for _ in store.read(digest):
                pass
            continue
        replace_with(store.path(digest), lambda path, name=name: shutil.copyfile(folder / name, path))  # type: ignore[misc]
        count += 1
    missing = [f"{len(manifest['damaged'])} were damaged at the site already"] if manifest["damaged"] else []
    return ["; ".join([f"artifacts: {count} restored", *missing])]


def _sqlite(folder: Path, manifest: dict[str, Any], settings: Settings, aside: str | None) -> list[str]:
    target = Path(str(settings.database.database))
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".restoring-{target.name}-{secrets.token_hex(4)}")
    database = Database(settings.database.set(database=str(draft)))
    try:
        with database.engine.connect().execution_options(writes=True) as connection:
            said = _fill(connection, folder, manifest)
            connection.commit()
        database.close()  # the last connection moves what the log holds into the file
        sync(draft)
        said += _swap(draft, target, aside)
    finally:
        database.close()
        for path in target.parent.glob(f"{draft.name}*"):
            path.unlink()
    return said


def _swap(draft: Path, target: Path, aside: str | None) -> list[str]:
    """Put the new database into the old one's place; whenever the power goes, one of them is there, whole.

    A log of the old one must not lie beside the new one, so what it holds goes into the old one's file first.
    """
    is_there = target.exists()
    logs = _settle(target) if is_there else [path for path in _logs(target) if path.exists()]
    away = target.parent / aside if aside is not None and (is_there or logs) else None
    if away is not None:
        away.mkdir(mode=0o700, exist_ok=True)
    for path in logs:  # of a database that cannot be read, or is not there: there is nothing to start from anyway
        path.rename(away / path.name) if away is not None else path.unlink()
    if away is not None and is_there:
        try:
            os.link(target, away / target.name)
        except OSError:  # a file system that knows no links
            shutil.copyfile(target, away / target.name)
        sync(away / target.name)
        sync(away)
    sync(target.parent)
    draft.replace(target)
    sync(target.parent)
    return [f"the database that was there is in {away}"] if away is not None else []


def _logs(database: Path) -> list[Path]:
    return [database.with_name(database.name + end) for end in ("-wal", "-shm")]


def _settle(database: Path) -> list[Path]:
    """Make a SQLite database one file; return the files of its log that stay, where it cannot be read.

    Raises:
        Refusal: `in_use` where another process has it open.
    """
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=1)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE").fetchone()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            raise Refusal("in_use", f"another process has {database} open; stop the site") from None
    except sqlite3.DatabaseError:
        pass
    return [path for path in _logs(database) if path.exists()]


def _postgresql(folder: Path, manifest: dict[str, Any], settings: Settings, aside: str | None) -> list[str]:
    """Fill the database in one transaction; tables that are there move to a schema of their own in it, or go if unused."""
    database = Database(settings.database)
    schema = (aside or f"unused-{secrets.token_hex(4)}").replace("-", "_").lower()
    try:
        with roles.owners_work(database, "relay restore"), database.engine.connect() as connection:
            for limit in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
                connection.execute(text(f"SET LOCAL {limit} = 0"))
            moved = _move_tables(connection, schema)
            said = _fill(connection, folder, manifest)
            if moved and aside is None:
                connection.execute(text(f'DROP SCHEMA "{schema}" CASCADE'))
            connection.commit()
    finally:
        database.close()
    return [*said, *([f"the tables that were there are in the schema {schema}"] if moved and aside is not None else [])]


def _move_tables(connection: Connection, schema: str) -> bool:
    """Move the site's tables, and the functions of their triggers, to a new schema; return whether there were any.

    Tables of others in the same schema stay, except beside a database of a later version, whose tables nobody here knows.
    """
    ours = {*Base.metadata.tables, "alembic_version"}
    present = inspect(connection).get_table_names()
    if not {"alembic_version", "audit"}.issubset(present):
        return False
    revision = MigrationContext.configure(connection).get_current_revision()
    moved = [name for name in present if name in ours or revision not in {None, *migrate.known()}]
    connection.execute(text(f'CREATE SCHEMA "{schema}"'))
    for name in moved:
        connection.execute(text(f'ALTER TABLE "{name}" SET SCHEMA "{schema}"'))
    functions = (
        "SELECT DISTINCT p.oid::regprocedure FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON "
        "p.oid = t.tgfoid WHERE c.relnamespace = CAST(:schema AS regnamespace) "
        "AND p.pronamespace = current_schema()::regnamespace"
    )
    for function in connection.scalars(text(functions), {"schema": schema}).all():
        connection.execute(text(f'ALTER ROUTINE {function} SET SCHEMA "{schema}"'))
    return True


def _fill(connection: Connection, folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Make the tables as they were backed up, fill and check them, bring them up to date and let their jobs wait again."""
    migrate.upgrade_within(connection, manifest["revision"])
    for name, table in backup.tables(connection).items():
        rows = _parents_first(table, backup.rows_of(folder, name))
        while batch := list(islice(rows, 1000)):
            connection.execute(table.insert(), batch)
    migrate.upgrade_within(connection)
    with Session(connection, expire_on_commit=False) as session:
        length, head = audit.verify(session)
        if (length, head) != (manifest["audit"]["rows"], manifest["audit"]["head"]):
            raise Refusal("audit_broken", "the audit log is not what was backed up")
        waiting = _let_wait(session)
        artifacts, tokens = (session.query(table).count() for table in (Artifact, Token))
        audit.record(
            session, audit.operator("relay restore"), "site.restore", head, backup=manifest["created_at"], jobs=waiting
        )
        session.commit()  # of the session; the transaction is the connection's
    return [
        f"database: {sum(manifest['tables'].values())} rows of {manifest['created_at']}, {artifacts} artifacts, "
        f"{tokens} tokens, audit log of {length} rows whole, head {head}",
        f"jobs that were running and wait again: {', '.join(waiting) or 'none'}",
    ]


def _parents_first(table: Any, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Order the rows of a table that refers to itself so that each comes after the one that it refers to."""
    own = [key.parent.name for key in table.foreign_keys if key.column.table is table]
    if not own:
        yield from rows
        return
    (id_column,) = [column.name for column in table.primary_key]
    pending, done = list(rows), {None}
    while pending:
        ready = [row for row in pending if all(row[name] in done for name in own)]
        if not ready:
            raise Refusal("backup_damaged", f"{table.name}: rows refer to rows that are not there")
        yield from ready
        done |= {row[id_column] for row in ready}
        pending = [row for row in pending if row[id_column] not in done]


def _let_wait(session: Session) -> list[str]:
    """Put jobs that ran into the queue again, at no cost of a try; return their ids.

    The fencing token of one that failed or was cancelled leaps too: it may have been retried after the backup.
    """
    held = []
    for job in session.scalars(select(Job).where(Job.state != "succeeded").order_by(Job.id)).all():
        job.attempt += LEAP
        if job.state in HELD:
            job.tries -= 1
            error = {"code": "stopped", "message": "the site was restored from a backup"}
            leases.requeue(session, job, error, max_tries=job.tries + 1)
            held.append(job.id)
    return held


def _mark_volumes(settings: Settings) -> None:
    """Mark the volumes that the restored database knows as this site's."""
    database = Database(settings.database)
    try:
        with database.write() as session:
            for row in session.scalars(select(Volume)).all():
                volumes.adopt(session, settings, row.name)
    finally:
        database.close()
