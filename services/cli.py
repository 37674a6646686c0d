"""Add the service's commands to `relay`. Each command imports what it needs when it runs, since the imports are slow."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from relay_core.cli import witnesses
from relay_core.errors import RelayError
from services import operation

if TYPE_CHECKING:
    from services.client import Client
    from services.site import Settings
    from services.site.db import Database

UrlOption = Annotated[str, typer.Option("--url", envvar="RELAY_URL", help="Address of the site's service.")]
TokenOption = Annotated[str | None, typer.Option("--token", envvar="RELAY_TOKEN", help="Bearer token.", show_envvar=True)]
HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Folder of an embedded site; default: what RELAY_* variables say.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print data as JSON on standard output.")]
URL = "http://127.0.0.1:8000"

jobs_app = typer.Typer(help="The jobs of a running site.", no_args_is_help=False, invoke_without_command=True)
models_app = typer.Typer(help="The models that a running site serves.", invoke_without_command=True)
token_app = typer.Typer(help="Who may use this site's service.", no_args_is_help=True)
audit_app = typer.Typer(help="The site's audit log.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the service's commands (entry point `relay_core.commands`)."""
    witnesses.append(_recorded)
    app.command()(demo)
    app.command()(up)
    app.command()(status)
    app.command()(submit)
    app.command()(exports)
    app.command()(imports)
    app.command()(reconcile)
    app.command()(migrate)
    app.add_typer(jobs_app, name="jobs")
    app.add_typer(models_app, name="models")
    app.add_typer(token_app, name="token")
    app.add_typer(audit_app, name="audit")
    operation.register(app)


@contextmanager
def _recorded(keys: Path) -> Iterator[None]:
    """Record a change of a folder of keys in the database of the site that it belongs to; a folder alone is no site's.

    Raises:
        RelayError: the database cannot be told; the folder is changed all the same, as a key must be revocable at any time.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from services.site import audit, site_of_keys, trust
    from services.site.db import Database

    failure, stack = None, ExitStack()
    try:
        settings = site_of_keys(keys)
        if settings is not None:
            database = Database(settings.database)
            stack.callback(database.close)
            stack.enter_context(trust.changing(database, keys, audit.operator("relay keys")))
    except (SQLAlchemyError, RelayError) as error:
        failure = error
    try:
        yield
    except BaseException:
        stack.__exit__(*sys.exc_info())
        raise
    try:
        stack.close()
    except (SQLAlchemyError, RelayError) as error:
        failure = error
    if failure is not None:
        reason = f"{failure}".splitlines()[0]
        raise RelayError(
            f"done in {keys}, but the site's database was not told ({reason}): a worker tells it as soon as it reaches it, "
            "and the audit log then names the worker"
        ) from None


def up(
    home: Annotated[Path, typer.Option(envvar="RELAY_HOME", help="Everything that the site keeps.")] = Path("relay-site"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Serve a whole site from this machine: database, API and worker, nothing else to install."""
    from services.local import run_up

    home.mkdir(parents=True, exist_ok=True)
    run_up(home, host=host, port=port, device=device)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the hospitals, the courier's disk and the result.")] = Path("demo"),
    sites: Annotated[int, typer.Option(min=2, max=8, help="Number of hospitals.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of phantoms and trainings.")] = 0,
) -> None:
    """Play a relay over phantom hospitals, each a service of its own, with a courier between them."""
    from services.local import run_demo

    out.mkdir(parents=True, exist_ok=True)
    run_demo(out, sites, seed, device)


@contextmanager
def _client(url: str, token: str | None) -> Iterator[Client]:
    from services.client import Client

    if not token:
        raise RelayError("a token is needed: set RELAY_TOKEN, or make one with: relay token create NAME")
    with Client(url, token) as client:
        yield client


def status(url: UrlOption = URL, token: TokenOption = None, as_json: JsonOption = False) -> None:
    """Whether the site is ready, and what it is doing."""
    from services.client import Client, show_status

    with Client(url, token) as client:
        ready = client.ready()
        active: list[dict[str, Any]] = []
        if token:
            active = [
                job for state in ("running", "cancelling", "queued") for job in client.pages("/api/v1/jobs", state=state)
            ]
    print(json.dumps({"ready": ready, "jobs": active})) if as_json else show_status(ready, active)
    if ready.get("status") == "not_ready":
        raise typer.Exit(1)


@jobs_app.callback()
def jobs(
    context: typer.Context,
    url: UrlOption = URL,
    token: TokenOption = None,
    state: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed or cancelled.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Newest jobs to show.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the newest jobs; see the commands below for one of them."""
    from itertools import islice

    from services.client import jobs_table

    context.obj = (url, token)
    if context.invoked_subcommand is not None:
        return
    with _client(url, token) as client:
        rows = list(islice(client.pages("/api/v1/jobs", **({"state": state} if state else {})), limit))
    print(json.dumps(rows)) if as_json else jobs_table(rows)


def _print_answer(context: typer.Context, method: str, path: str) -> None:
    with _client(*context.obj) as client:
        print(json.dumps(client.call(method, path), indent=1))


@jobs_app.command()
def show(context: typer.Context, job_id: str) -> None:
    """Everything about one job, as JSON."""
    _print_answer(context, "GET", f"/api/v1/jobs/{job_id}")


@jobs_app.command()
def cancel(context: typer.Context, job_id: str) -> None:
    """Ask a job to write a checkpoint and end."""
    _print_answer(context, "POST", f"/api/v1/jobs/{job_id}/cancel")


@jobs_app.command()
def retry(context: typer.Context, job_id: str) -> None:
    """Queue a failed or cancelled job again; it goes on from its newest checkpoint."""
    _print_answer(context, "POST", f"/api/v1/jobs/{job_id}/retry")


@jobs_app.command()
def watch(context: typer.Context, job_id: str) -> None:
    """Follow a job to its end."""
    from services.client import watch_job

    with _client(*context.obj) as client:
        watch_job(client, job_id)


def submit(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run file (YAML), or the name of a recipe.")],
    site: Annotated[int | None, typer.Option(help="Train this site alone (its task_id).")] = None,
    data: Annotated[str, typer.Option(help="Folder below the site's data root that the run's image folders lie in.")] = "",
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key: train.batch_size=8. Repeatable.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Go on from this checkpoint; default: the newest that fits.")
    ] = None,
    until: Annotated[Literal["end", "solver"], typer.Option(help="`solver`: end where the solver is ready.")] = "end",
    detach: Annotated[bool, typer.Option("--detach", help="Print the job's id and return.")] = False,
    url: UrlOption = URL,
    token: TokenOption = None,
) -> None:
    """Train a run on a site's service: upload it, register its images by name, queue the job, follow it."""
    from relay_core.config import load_run
    from services.client import submit_run, watch_job

    loaded = load_run(run, set_ or [])
    with _client(url, token) as client:
        job = submit_run(client, loaded, site, data, checkpoint=checkpoint, until=until)
        print(job["id"], flush=True)
        if not detach:
            watch_job(client, job["id"])


def exports(
    checkpoint: Annotated[str | None, typer.Argument(metavar="CHECKPOINT_ID", help="Left out: list what was built.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="Encrypt for this site: its name or fingerprint.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Carry the weights in half precision.")] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write; default: named after the bundle.")] = None,
    override: Annotated[
        str | None, typer.Option(help="Why it may leave though no privacy audit passed; it travels along.")
    ] = None,
    discriminators: Annotated[
        bool, typer.Option("--discriminators/--without-discriminators", help="Else the next site's start anew.")
    ] = True,
    url: UrlOption = URL,
    token: TokenOption = None,
) -> None:
    """Have the signed bundle of a checkpoint built, and fetch it; a broken download goes on where it broke."""
    from services.client import export_checkpoint, exports_table

    with _client(url, token) as client:
        if checkpoint is None:
            exports_table(list(client.pages("/api/v1/exports")))
        else:
            print(export_checkpoint(client, checkpoint, to, half, out, override, discriminators))


def imports(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="Left out: list.")] = None,
    purpose: Annotated[str, typer.Option(help="train, or evaluate: only to score it.")] = "train",
    accept: Annotated[str | None, typer.Option(metavar="ID", help="Use this import for the next training.")] = None,
    reject: Annotated[str | None, typer.Option(metavar="ID", help="Let this import go.")] = None,
    reason: Annotated[str, typer.Option(help="Why it is rejected.")] = "",
    url: UrlOption = URL,
    token: TokenOption = None,
) -> None:
    """Bring a bundle and see what is in it; then accept or reject it."""
    from services.client import bring, imports_table, show_import

    if len([given for given in (file, accept, reject) if given is not None]) > 1:
        raise RelayError("give one of FILE, --accept and --reject")
    with _client(url, token) as client:
        if file is not None:
            show_import(bring(client, file, purpose))
        elif accept is not None:
            show_import(client.call("POST", f"/api/v1/imports/{accept}/accept"))
        elif reject is not None:
            show_import(client.call("POST", f"/api/v1/imports/{reject}/reject", json={"reason": reason}))
        else:
            imports_table(list(client.pages("/api/v1/imports")))


@models_app.callback()
def models(
    context: typer.Context, url: UrlOption = URL, token: TokenOption = None, as_json: JsonOption = False
) -> None:  # fmt: skip
    """List the versions of all models; * is in production."""
    from services.client import models_table

    context.obj = (url, token)
    if context.invoked_subcommand is not None:
        return
    with _client(url, token) as client:
        rows = list(client.pages("/api/v1/models"))
    print(json.dumps(rows)) if as_json else models_table(rows)


@models_app.command("export")
def export_model(
    context: typer.Context,
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="CHECKPOINT_ID", help="Left out: the newest that was trained here.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the model; default: from the run's name.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
) -> None:
    """Make a checkpoint's solver the next version of a model, proved on the test sets of this site."""
    from services.client import export_model as export

    with _client(*context.obj) as client:
        exported = export(client, checkpoint, name, precision)
    print(
        f"{exported['model']} version {exported['version']}: relay models promote {exported['model']} {exported['version']}"
    )


@models_app.command()
def promote(
    context: typer.Context, name: str, version: int,
    reason: Annotated[str | None, typer.Option(help="Needed where it is worse on any test set.")] = None,
) -> None:  # fmt: skip
    """Put a version into production: it answers where none is named."""
    from services.client import models

    with _client(*context.obj) as client:
        models.promote(client, name, version, reason)


@models_app.command()
def rollback(context: typer.Context, name: str, reason: Annotated[str, typer.Option(help="Why.")]) -> None:
    """Back to the version that was in production before."""
    from services.client import models

    with _client(*context.obj) as client:
        models.roll_back(client, name, reason)


@contextmanager
def _site(home: Path | None, *, needs_key: bool = True) -> Iterator[tuple[Settings, Database]]:
    """Open the site's own database, for commands that an administrator runs on its machine."""
    from services.site import load_settings
    from services.site.db import Database

    settings = load_settings(embedded=True, home=home.absolute()) if home else load_settings(needs_key=needs_key)
    database = Database(settings.database)
    try:
        yield settings, database
    finally:
        database.close()


def reconcile(home: HomeOption = None) -> None:
    """Run the reconciler alone: for sites whose API runs with RELAY_RECONCILE=false."""
    import signal
    import threading

    from services.site import doorbell
    from services.site import reconcile as reconciler

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop.set())
    with _site(home) as (settings, database):
        bell = doorbell(settings.broker)
        reconciler.run(database, bell, settings, stop)
        bell.close()


def migrate() -> None:
    """Bring the site's database up to date, as its owner; with the passwords of API and workers, give them their roles."""
    from services.api import bring_up_to_date
    from services.site import load_settings, role_passwords
    from services.site.db import Database, roles
    from services.site.db import migrate as migrations

    settings = load_settings()
    passwords = role_passwords(settings)
    database = Database(settings.database)
    try:
        bring_up_to_date(database)
        made = roles.grant(database, passwords) if passwords else []
    finally:
        database.close()
    print(f"the database is at revision {migrations.head()}" + (f"; roles: {', '.join(made)}" if made else ""))


@token_app.command("create")
def token_create(
    name: Annotated[str, typer.Argument(help="Who or what will use it.")],
    role: Annotated[str, typer.Option(help="viewer, operator or admin.")] = "viewer",
    days: Annotated[float | None, typer.Option(min=0.01, help="Days until it expires; default: never.")] = None,
    home: HomeOption = None,
) -> None:
    """Make a token and print it, this once."""
    from services.site import audit, auth

    chosen = next((allowed for allowed in auth.ROLES if allowed == role), None)
    if chosen is None:
        raise RelayError(f"--role {role}: use {', '.join(auth.ROLES)}")
    with _site(home) as (settings, database), database.write() as session:
        row, text = auth.create_token(session, settings.key, name, chosen, days)
        audit.record(session, audit.operator("relay token"), "token.create", row.id, name=name, role=role)
    print(text)


@token_app.command("list")
def token_list(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the tokens; the texts themselves are kept nowhere."""
    from sqlalchemy import select

    from services.client import tokens_table
    from services.site.db import Token

    with _site(home) as (_, database), database.read() as session:
        rows = [
            {"id": row.id, "name": row.name, "role": row.role, "expires": row.expires_at, "revoked": row.revoked_at}
            for row in session.scalars(select(Token).order_by(Token.created_at))
        ]
    print(json.dumps(rows)) if as_json else tokens_table(rows, time.time())


@token_app.command("revoke")
def token_revoke(token_id: str, home: HomeOption = None) -> None:
    """Make a token useless from now on."""
    from services.site import audit, auth

    with _site(home) as (_, database), database.write() as session:
        row = auth.revoke_token(session, token_id)
        audit.record(session, audit.operator("relay token"), "token.revoke", row.id, name=row.name)
    print(f"revoked {token_id}")


@audit_app.command("verify")
def audit_verify(
    head: Annotated[str | None, typer.Option(help="A hash noted down earlier that must still be in the chain.")] = None,
    heads: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Signed heads, as shipped; default: this site's own.")
    ] = None,
    card: Annotated[
        list[Path] | None, typer.Option(exists=True, help="card.json of a key that signed heads; default: this site's.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that no row of the audit log was changed or removed, and that it fits the heads that the site signed."""
    from services.site import audit, audit_heads

    with _site(home, needs_key=False) as (settings, database):
        file, own_card = heads or settings.heads_folder / audit_heads.FILE, settings.keys_folder / "card.json"
        cards = [*(card or []), *([own_card] if own_card.is_file() else [])]
        signed, torn = audit_heads.read(file, _cards(cards)) if file.is_file() and cards else ([], 0)
        with database.read() as session:
            rows, last = audit.verify(session, head, signed)
    if signed:
        text = f"{len(signed)} signed heads fit, the last of row {signed[-1]['seq']}"
    else:
        why = "no key to check them with: give --card" if file.is_file() else f"there is no {file}"
        text = f"NO SIGNED HEADS ({why}): a log that was rewritten as a whole would not show"
    text += f"; {torn} lines of {file} cannot be read" if torn else ""
    data: dict[str, Any] = {"rows": rows, "head": last, "signed_heads": len(signed), "unreadable_lines": torn}
    print(json.dumps(data) if as_json else f"{rows} rows, chain whole, head {last}\n{text}")


def _cards(paths: list[Path]) -> list[Any]:
    from relay_core.bundle import Card

    return [Card.from_json(path.read_bytes(), path.name) for path in paths]
