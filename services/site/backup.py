"""Back up a whole site, while it runs: one folder with its database, artifacts, keys and a manifest of their digests.

The database is read in one transaction, as JSON lines that any engine takes: a site may move from SQLite to PostgreSQL. The
artifacts follow; they never change, and what the database named at that moment stays in the store for a day at least
(`sweep.GRACE`). The folder gets its name when everything is in it and on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic.runtime.migration import MigrationContext
from sqlalchemy import JSON, Connection, MetaData, Table, select, text

import relay_core
from relay_core.files import replace_with, sync
from services.site import audit, volumes
from services.site.artifacts import CHUNK, ArtifactStore
from services.site.db import AuditRecord, Database, roles
from services.site.errors import Refusal
from services.site.settings import Settings

Show = Callable[[int, int], object]
"""Is told (done, total) in bytes while files are copied or read."""

MANIFEST = "manifest.json"
FORMAT = 1
PASSING = {"workers", "device_leases", "lockouts", "browser_sessions", "alembic_version"}
"""Tables of what is true only while a site runs: they are not backed up."""
ASIDE = "replaced-"
"""Beginning of the names that a restore gives what it moves aside."""


def create(database: Database, settings: Settings, target: Path, show: Show = lambda done, total: None) -> dict[str, Any]:
    """Back up a site to the new folder `target`, readable by its owner alone; return the manifest.

    Its key `damaged` lists the digests of artifacts that the site itself lacks, and the backup so too.

    Raises:
        Refusal: `name_taken` where `target` exists; `volume_away`; `audit_broken`.
    """
    if target.exists():
        raise Refusal("name_taken", f"{target} exists; name another folder for the backup")
    problems = volumes.away(database, settings, "artifacts")
    if problems:
        raise Refusal("volume_away", "; ".join(problems.values()))
    with _draft(target) as draft:
        _require_rights(database)
        with database.write() as session:  # a copy of everything: it is in the log, and so in the backup too
            audit.record(session, audit.operator("relay backup"), "site.backup", target.name)
        manifest = _copy_rows(database, draft / "database")
        sizes = {row["digest"]: row["size"] for row in rows_of(draft, "artifacts")}
        manifest |= {
            "format": FORMAT, "version": relay_core.__version__, "site_name": settings.site_name,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "damaged": _copy_artifacts(ArtifactStore(settings.artifact_folder), sizes, draft / "artifacts", show),
        }  # fmt: skip
        _copy_keys(settings, draft)
        manifest["files"] = {
            name: {"sha256": _sha256(path), "size": path.stat().st_size}
            for name, path in _files(draft)
            if not name.startswith("artifacts/")
        } | {
            f"artifacts/{digest}": {"sha256": digest, "size": size}
            for digest, size in sorted(sizes.items())
            if digest not in manifest["damaged"]
        }
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        for folder, _, names in os.walk(draft):
            for name in names:
                sync(Path(folder, name))
            sync(Path(folder))
    return manifest


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """Give a folder beside `target` that becomes `target` at the end of the block, or is removed where it raises."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".writing-{target.name}-{secrets.token_hex(4)}")
    mask = os.umask(0o077)
    try:
        draft.mkdir()
        yield draft
        if target.exists():
            raise Refusal("name_taken", f"{target} exists by now; name another folder for the backup")
        draft.rename(target)
        sync(target.parent)
    finally:
        os.umask(mask)
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _snapshot(database: Database) -> Iterator[Connection]:
    """Give a connection that sees the database as it is at one moment."""
    options = {} if database.sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with database.engine.connect().execution_options(**options) as connection:
        if not database.sqlite:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        yield connection


def tables(connection: Connection) -> dict[str, Table]:
    """Return the tables that a backup holds, those that others refer to first; JSON's null is SQL's in them."""
    metadata = MetaData()
    metadata.reflect(connection)
    for table in metadata.sorted_tables:
        for column in table.columns:
            if isinstance(column.type, JSON):
                column.type.none_as_null = True
    return {table.name: table for table in metadata.sorted_tables if table.name not in PASSING}


def _require_rights(database: Database) -> None:
    """Refuse a backup that could not be made, before the audit log says that one was taken. Raises DatabaseError."""
    with roles.owners_work(database, "relay backup"), _snapshot(database) as connection:
        for table in tables(connection).values():
            connection.execute(select(table).limit(0))


def _copy_rows(database: Database, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    counts = {}
    with roles.owners_work(database, "relay backup"), _snapshot(database) as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
        for name, table in tables(connection).items():
            counts[name] = 0
            rows = connection.execution_options(yield_per=1000).execute(select(table).order_by(*table.primary_key))
            with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                for row in rows.mappings():
                    file.write(json.dumps(dict(row)) + "\n")
                    counts[name] += 1
    length, head = audit.verify_rows(AuditRecord(**row) for row in rows_of(folder.parent, "audit"))
    return {"revision": revision, "tables": counts, "audit": {"rows": length, "head": head}}


def rows_of(backup: Path, table: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table in a backup; none where it has no such table."""
    path = backup / "database" / f"{table}.jsonl"
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def _copy_artifacts(store: ArtifactStore, sizes: dict[str, int], folder: Path, show: Show) -> list[str]:
    """Copy artifacts, each verified; return the digests of those that are damaged or missing at the site."""
    folder.mkdir()
    damaged, done, total = [], 0, sum(sizes.values())
    for digest, size in sorted(sizes.items()):
        try:
            replace_with(folder / digest, lambda path, digest=digest: _copy(store, digest, path))  # type: ignore[misc]
        except Refusal as refusal:
            if refusal.code != "artifact_damaged":
                raise
            damaged.append(digest)
        done += size
        show(done, total)
    return damaged


def _copy(store: ArtifactStore, digest: str, target: Path) -> None:
    with target.open("wb") as file:
        file.writelines(_readable(store, digest))


def _readable(store: ArtifactStore, digest: str) -> Iterator[bytes]:
    """Read an artifact as `ArtifactStore.read`; a bad sector damages it, while a failure to write ends the backup."""
    try:
        yield from store.read(digest)
    except OSError as error:
        store.require_mounted()
        raise Refusal("artifact_damaged", f"the bytes of {digest} cannot be read: {error.strerror}") from error


def _copy_keys(settings: Settings, draft: Path) -> None:
    for path in sorted(settings.keys_folder.rglob("*")):
        relative = path.relative_to(settings.keys_folder)
        if path.is_file() and not path.is_symlink() and not relative.parts[0].startswith(ASIDE):
            (draft / "keys" / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, draft / "keys" / relative)
    if settings.embedded and (settings.home / "secret-key").is_file():
        shutil.copyfile(settings.home / "secret-key", draft / "secret-key")


def _files(folder: Path) -> Iterable[tuple[str, Path]]:
    return ((path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")) if not path.is_dir())


def _sha256(path: Path, tell: Callable[[int], object] = lambda size: None) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            tell(len(chunk))
    return hasher.hexdigest()


def verify(backup: Path, show: Show = lambda done, total: None) -> dict[str, Any]:
    """Check every file of a backup against its manifest, and the audit log's chain; return the manifest.

    Raises:
        Refusal: `backup_damaged`, naming the file; `audit_broken`.
    """
    manifest = _manifest(backup)
    listed, found = manifest["files"], dict(_files(backup))
    found.pop(MANIFEST)
    for name in sorted(listed.keys() ^ found.keys()):
        what = "is missing" if name in listed else "is not in its manifest"
        raise Refusal("backup_damaged", f"{backup}: {name} {what}; take another backup")
    done, total = 0, sum(entry["size"] for entry in listed.values())

    def tell(size: int) -> None:
        nonlocal done
        done += size
        show(done, total)

    for name, path in found.items():
        if path.is_symlink() or not path.is_file() or _sha256(path, tell) != listed[name]["sha256"]:
            raise Refusal("backup_damaged", f"{backup}: {name} was changed since it was written; take another backup")
    counted = audit.verify_rows(AuditRecord(**row) for row in rows_of(backup, "audit"))
    if counted != (manifest["audit"]["rows"], manifest["audit"]["head"]):
        raise Refusal("backup_damaged", f"{backup}: the audit log is another than its manifest says")
    held = {name.removeprefix("artifacts/") for name in listed} | set(manifest["damaged"])
    lacking = next((row["digest"] for row in rows_of(backup, "artifacts") if row["digest"] not in held), None)
    if lacking is not None:
        raise Refusal("backup_damaged", f"{backup}: the artifact {lacking} is not in it")
    return manifest


def _manifest(backup: Path) -> dict[str, Any]:
    path = backup / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Refusal("backup_damaged", f"{backup} is no backup: it has no {MANIFEST}") from None
    except ValueError as error:
        raise Refusal("backup_damaged", f"{path} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise Refusal("backup_damaged", f"{path}: of a format that this version does not know (it knows {FORMAT})")
    lacking = {"files", "audit", "tables", "revision", "damaged", "created_at", "site_name"} - manifest.keys()
    if lacking:
        raise Refusal("backup_damaged", f"{path}: lacks {', '.join(sorted(lacking))}")
    return manifest
