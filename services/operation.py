"""Add the commands of who runs a site's machine: `relay artifacts`, `relay backup`, `relay restore`.

They work on the site's own database and folders, and are not offered over REST: after a restore, tokens that were revoked
since the backup are valid again, so that none of them may decide what is deleted.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay_core.errors import RelayError

if TYPE_CHECKING:
    from services.site import Settings
    from services.site.db import Database

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Folder of an embedded site; default: what RELAY_* variables say.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print data as JSON on standard output.")]
BackupArgument = Annotated[Path, typer.Argument(metavar="BACKUP", exists=True, file_okay=False, help="Folder of a backup.")]

artifacts_app = typer.Typer(help="What the store holds and nobody needs.", invoke_without_command=True)
backup_app = typer.Typer(help="Back up a site, while it runs.", invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add the commands to `relay`."""
    app.add_typer(artifacts_app, name="artifacts")
    app.add_typer(backup_app, name="backup")
    app.command()(restore)


def _settings(home: Path | None) -> Settings:
    from services.site import load_settings

    return load_settings(embedded=True, home=home.absolute()) if home else load_settings()


@contextmanager
def _site(home: Path | None) -> Iterator[tuple[Settings, Database]]:
    """Open the site's own database.

    Raises:
        RelayError: there is no such site.
        Refusal: `not_ready` where its database is not at this version.
    """
    from services.site import Refusal
    from services.site.db import Database, migrate

    if home is not None and not home.is_dir():
        raise RelayError(f"{home}: there is no such folder")
    settings = _settings(home)
    database = Database(settings.database)
    try:
        current, head = migrate.current(database), migrate.head()
        if current != head:
            raise Refusal(
                "not_ready", f"the database is at revision {current}, this version needs {head}: relay up or relay migrate"
            )
        yield settings, database
    finally:
        database.close()


@contextmanager
def _long_copy(what: str) -> Iterator[Callable[[int, int], object]]:
    """Yield what shows (done, total) in bytes. SIGTERM and SIGHUP end the work as Ctrl-C does."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    mask = os.umask(0o077)
    columns = TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    try:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        os.umask(mask)
        for number, handler in previous.items():
            signal.signal(number, handler)


@artifacts_app.callback()
def artifacts(context: typer.Context, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List what nobody needs, with size and age: in the store until its grace is over, then in the trash."""
    from services.site import ArtifactStore, sweep, volumes

    context.obj = home
    if context.invoked_subcommand is not None:
        return
    with _site(home) as (settings, database):
        store = ArtifactStore(settings.artifact_folder)
        problems = list(volumes.away(database, settings, *volumes.WRITTEN).values())
        with database.read() as session:
            unconfirmed, missing = sweep.unconfirmed(session, store), sweep.missing(session, store)
        files = sweep.unused(database, store)
    if as_json:
        rows = [{"name": file.name, "size": file.size, "age_seconds": file.age} for file in files]
        print(json.dumps({"unconfirmed": unconfirmed, "volumes": problems, "missing": missing, "unneeded": rows}))
        return
    for file in files:
        print(f"{file.size:>14,} bytes  {file.age / 86400:6.1f} days  {file.name}")
    print(f"{len(files)} files, {sum(file.size for file in files):,} bytes that no row of the database needs")
    for problem in problems:
        print(problem)
    if missing:
        print(f"{len(missing)} files that rows need are not in the store: restore a backup ({', '.join(missing[:3])}...)")
    if unconfirmed:
        print(f"{unconfirmed}: nothing is deleted until: relay artifacts confirm")


@artifacts_app.command("restore")
def artifacts_restore(
    context: typer.Context,
    digests: Annotated[list[str] | None, typer.Argument(metavar="[DIGEST]...", help="Or beginnings; default: all.")] = None,
    home: HomeOption = None,
) -> None:
    """Move files from the trash back into the store, where their grace begins anew."""
    from services.site import ArtifactStore, audit, sweep

    with _site(home or context.obj) as (settings, database):
        chosen = sweep.restore(
            database, ArtifactStore(settings.artifact_folder), audit.operator("relay artifacts"), digests or ()
        )
    print(f"back in the store: {', '.join(chosen) or 'none'}")


@artifacts_app.command("confirm")
def artifacts_confirm(
    context: typer.Context,
    adopt: Annotated[bool, typer.Option("--adopt", help="Volumes without this site's mark are the right ones.")] = False,
    home: HomeOption = None,
) -> None:
    """Say, after a restore, that database and volumes are as they should be; from now on the sweep goes on."""
    from services.site import audit, sweep

    with _site(home or context.obj) as (settings, database):
        adopted = sweep.confirm(database, settings, audit.operator("relay artifacts"), adopt=adopt)
    print("confirmed" + (f"; marked as this site's: {', '.join(adopted)}" if adopted else ""))


@artifacts_app.command("empty")
def artifacts_empty(context: typer.Context, home: HomeOption = None) -> None:
    """Delete for good what lies in the trash."""
    from services.site import ArtifactStore, audit, sweep

    with _site(home or context.obj) as (settings, database):
        count, size = sweep.empty(database, ArtifactStore(settings.artifact_folder), audit.operator("relay artifacts"))
    print(f"deleted {count} files, {size:,} bytes")


@backup_app.callback()
def backup(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="New folder; default: relay-backup-DATE-TIME, here.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write database, artifacts and keys into a new folder, verified; the site may go on."""
    import time

    from services.site import backup as backups

    if context.invoked_subcommand is not None:
        return
    target = (out or Path(time.strftime("relay-backup-%Y%m%d-%H%M%S"))).absolute()
    with _site(home) as (settings, database), _long_copy("copying") as show:
        manifest = backups.create(database, settings, target, show)
    _show_backup(target, manifest, as_json)


@backup_app.command("verify")
def backup_verify(folder: BackupArgument, as_json: JsonOption = False) -> None:
    """Read a backup back: every digest, the audit log's chain, nothing missing, nothing added."""
    from services.site import backup as backups

    with _long_copy("reading") as show:
        manifest = backups.verify(folder, show)
    _show_backup(folder, manifest, as_json)


def _show_backup(folder: Path, manifest: dict[str, Any], as_json: bool) -> None:
    damaged = manifest["damaged"]
    size = sum(entry["size"] for entry in manifest["files"].values())
    summary = {key: manifest[key] for key in ("created_at", "version", "site_name", "audit", "damaged")}
    if as_json:
        print(json.dumps({"backup": str(folder), **summary, "files": len(manifest["files"]), "bytes": size}))
    else:
        print(
            f"{folder}: {manifest['site_name']} as of {manifest['created_at']}, {sum(manifest['tables'].values())} rows, "
            f"{len(manifest['files'])} files, {size:,} bytes, audit head {manifest['audit']['head']}"
        )
        if damaged:
            print(f"NOT in it, as they are damaged or missing at the site itself: {', '.join(damaged)}")
    if damaged:
        raise typer.Exit(1)


def restore(
    folder: BackupArgument,
    home: HomeOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Move a site that is there aside.")] = False,
    adopt: Annotated[bool, typer.Option("--adopt", help="Volumes without the site's mark are the right ones.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a site back from a backup, which is verified first. The site must not run."""
    from services.site import restore as restoring

    settings = _settings(home)
    with _long_copy("verifying") as show:
        said = restoring.restore(folder.absolute(), settings, replace=replace, adopt=adopt, show=show)
    print(json.dumps({"done": said}) if as_json else "\n".join(said))
