"""Print what the service's commands show to a person."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table

from relay_core import events
from relay_core.cli import Terminal
from services.client.http import Client

SHORTEST = 4
"""Least width of a column that may be shortened."""


def show_status(ready: dict[str, Any], active: Sequence[dict[str, Any]]) -> None:
    """Print the site's readiness with its checks, and the jobs that wait or run."""
    console = Console(highlight=False)
    console.print(f"{ready.get('status', 'unknown')}", markup=False)
    for name, check in ready.get("checks", {}).items():
        state = "ok" if check.get("ok") else "NOT OK"
        console.print(f"  {name}: {state} {check.get('detail', '')}", markup=False)
    if active:
        jobs_table(active)


def show_table(headers: Sequence[str], rows: Sequence[Sequence[str]], shortened: Sequence[str] = ()) -> None:
    """Print a table: whole where it is no terminal that reads it; a narrow terminal gets less of the `shortened` columns.

    No other column is ever cut: what a person copies, or goes by, is there or the line is longer than the terminal.

    Args:
        headers: names of the columns.
        rows: the cells of each row.
        shortened: names of the columns whose texts end in an ellipsis where there is not enough room.
    """
    console = Console(highlight=False, markup=False)
    widths = [max(map(cell_len, cells)) for cells in zip(headers, *rows, strict=True)]
    if console.is_terminal:
        cut = [i for i, name in enumerate(headers) if name in shortened]
        spare = console.width - len(headers) + 1 - sum(width for i, width in enumerate(widths) if i not in cut)
        for left, i in zip(range(len(cut), 0, -1), sorted(cut, key=lambda i: widths[i]), strict=True):
            widths[i] = min(widths[i], max(spare // left, SHORTEST))
            spare -= widths[i]
    columns = (Column(name, no_wrap=True, width=width) for name, width in zip(headers, widths, strict=True))
    table = Table(*columns, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.width = max(console.width, sum(widths) + len(widths))
    console.print(table)


def jobs_table(jobs: Sequence[dict[str, Any]]) -> None:
    """Print a table with one row for each job."""
    rows = [(job["id"], job["kind"], job["state"], _share_done(job), job["created_by"], _minute(job)) for job in jobs]
    show_table(("job", "kind", "state", "done", "by", "created"), rows, shortened=["by"])


def _share_done(job: dict[str, Any]) -> str:
    progress = job.get("progress") or {}
    return f"{100 * progress['step'] // progress['steps']} %" if progress.get("steps") else ""


def _minute(job: dict[str, Any]) -> str:
    """Return when a job was made, without the year and the seconds."""
    return str(job["created_at"])[5:16].replace("T", " ")


def tokens_table(tokens: Sequence[dict[str, Any]], now: float) -> None:
    """Print a table with one row for each token; `now` is in seconds since the epoch."""
    rows = [(token["id"], token["name"], token["role"], _token_state(token, now)) for token in tokens]
    show_table(("id", "name", "role", "state"), rows, shortened=["name"])


def _token_state(token: dict[str, Any], now: float) -> str:
    if token["revoked"] is not None:
        return "revoked"
    if token["expires"] is None:
        return "valid"
    return ("expired " if token["expires"] < now else "valid until ") + time.strftime(
        "%Y-%m-%d", time.gmtime(token["expires"])
    )


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
