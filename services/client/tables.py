"""Print what the service's commands show to a person."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Column, Table

from relay_core import events
from relay_core.cli import Terminal
from services.client.http import Client


def show_status(ready: dict[str, Any], active: Sequence[dict[str, Any]]) -> None:
    """Print the site's readiness with its checks, and the jobs that wait or run."""
    console = Console(highlight=False)
    console.print(f"{ready.get('status', 'unknown')}", markup=False)
    for name, check in ready.get("checks", {}).items():
        state = "ok" if check.get("ok") else "NOT OK"
        console.print(f"  {name}: {state} {check.get('detail', '')}", markup=False)
    if active:
        jobs_table(active)


def jobs_table(jobs: Sequence[dict[str, Any]]) -> None:
    """Print a table with one row for each job."""
    table = Table(Column("job", no_wrap=True, min_width=32), "kind", "state", "progress", "by", "created", box=None)
    for job in jobs:
        progress = job.get("progress") or {}
        steps = f"{progress['step']}/{progress['steps']}" if progress.get("steps") else ""
        table.add_row(job["id"], job["kind"], job["state"], steps, job["created_by"], job["created_at"])
    Console(highlight=False, markup=False).print(table)


def tokens_table(tokens: Sequence[dict[str, Any]], now: float) -> None:
    """Print a table with one row for each token; `now` is in seconds since the epoch."""
    table = Table("id", "name", "role", "state", box=None)
    for token in tokens:
        expired = token["expires"] is not None and token["expires"] < now
        table.add_row(token["id"], token["name"], token["role"], _token_state(token, expired))
    Console(highlight=False, markup=False).print(table)


def _token_state(token: dict[str, Any], expired: bool) -> str:
    if token["revoked"] is not None:
        return "revoked"
    if token["expires"] is None:
        return "valid"
    return ("expired " if expired else "valid until ") + time.strftime("%Y-%m-%d", time.gmtime(token["expires"]))


def watch_job(client: Client, job_id: str) -> None:
    """Show a job's events until it ends; Ctrl-C stops watching, not the job.

    Raises:
        typer.Exit: with code 1 where the job did not succeed, with 130 after Ctrl-C.
        ServiceUnreachable, ServiceRefused: see `Client.follow`.
    """
    last: dict[str, Any] = {}
    with Terminal() as terminal:
        try:
            for last in client.follow(job_id, terminal.say):
                _show_event(terminal, last)
        except KeyboardInterrupt:
            terminal.say(f"the job goes on; relay jobs watch {job_id} shows it again, relay jobs cancel {job_id} ends it")
            raise typer.Exit(130) from None
    if last.get("event") != "succeeded":
        raise typer.Exit(1)


def _show_event(terminal: Terminal, data: dict[str, Any]) -> None:
    """Show one of a job's events, as the service sent it."""
    event = events.from_json(data)
    if event is not None:
        terminal(event)
    elif data["event"] == "log":
        terminal.say(data["line"])
    elif data["event"] in ("failed", "requeued"):
        error = data.get("error") or data
        terminal.say(f"{data['event']}: {error.get('message', '')}")
    elif data["event"] == "progress":
        terminal.say(f"{data.get('done')} of {data.get('total')}")
    else:
        terminal.say(data["event"])
