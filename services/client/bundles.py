"""What the commands `relay exports` and `relay imports` do, and what they show to a person."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from relay_core.metrics import headline
from services.client.http import Client
from services.client.http import Progress as Show
from services.client.tables import watch_job


def export_checkpoint(client: Client, checkpoint_id: str, to: str | None, half: bool, out: Path | None) -> Path:
    """Have a checkpoint's bundle built, follow the job, fetch the file; return where it lies.

    Args:
        client: of the service.
        checkpoint_id: the checkpoint.
        to: whom it is encrypted for.
        half: in half precision.
        out: file to write; None: named after the bundle, here.

    Raises:
        ServiceRefused, ServiceUnreachable, DownloadDamaged: see `Client`.
    """
    job = client.export({"checkpoint_id": checkpoint_id, "recipient": to, "half": half})
    watch_job(client, job["id"])
    made = client.call("GET", f"/api/v1/jobs/{job['id']}")["result"]["bundle"]
    target = out or Path(f"{made}.relay")
    with _bytes(f"fetching {target.name}") as show:
        client.download(f"/api/v1/exports/{made}/download", target, show)
    return target


def bring(client: Client, file: Path, purpose: str) -> dict[str, Any]:
    """Upload a bundle and follow its verification; return the import, which an operator then accepts or rejects.

    Raises:
        ServiceRefused, ServiceUnreachable: see `Client`.
    """
    with _bytes(f"sending {file.name}") as show:
        brought = client.upload(file, purpose, show)
    watch_job(client, brought["job_id"])
    return dict(client.call("GET", f"/api/v1/imports/{brought['id']}"))


@contextmanager
def _bytes(what: str) -> Iterator[Show]:
    """A bar of bytes on a terminal; elsewhere nothing."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def exports_table(rows: Sequence[dict[str, Any]]) -> None:
    """One row an export."""
    table = Table(Column("export", no_wrap=True, min_width=35), "hop", "site", "for", "MB", "built", box=None)
    for row in rows:
        facts = row["facts"]
        to = facts["recipient"][:8] if facts["recipient"] else "anybody"
        table.add_row(row["id"], str(facts["hop"]), facts["site"], to, f"{row['size'] / 1e6:.1f}", row["created_at"][:10])
    Console(highlight=False, markup=False).print(table)


def imports_table(rows: Sequence[dict[str, Any]]) -> None:
    """One row an import."""
    state = Column("state", no_wrap=True, min_width=11)
    table = Table(Column("import", no_wrap=True, min_width=35), state, "for", "hop", "site", "signer", box=None)
    for row in rows:
        facts = row["facts"] or {}
        signer = facts.get("signer", {}).get("name", "")
        hop = str(facts.get("hop", ""))
        table.add_row(row["id"], row["state"], row["purpose"], hop, facts.get("site", ""), signer)
    Console(highlight=False, markup=False).print(table)


def show_import(row: dict[str, Any]) -> None:
    """What a person looks at before the decision: signer, history, metrics."""
    lines = [f"{row['id']}  {row['state']}, to {row['purpose']}"]
    if row["error"]:
        lines.append(f"  {row['error']['code']}: {row['error']['message']}")
    if facts := row["facts"]:
        lines += [
            f"  run     {facts['run']}",
            f"  model   {facts['digest']}, hop {facts['hop']} by {facts['site']}",
            f"  signer  {facts['signer']['name']}, key {_spoken(facts['signer']['fingerprint'])}",
            *map(_hop, facts["history"]),
        ]
    if row["state"] == "quarantined":
        lines.append(f"  relay imports --accept {row['id']}\n  relay imports --reject {row['id']} --reason TEXT")
    print("\n".join(lines))


def _hop(hop: dict[str, Any]) -> str:
    found = {name: headline(row) for name, row in hop["metrics"].items()}
    scores = [f"{what} {name} {value:.3f}" for name, (what, value) in found.items() if value is not None]
    day = time.strftime("%Y-%m-%d", time.gmtime(hop["created_at"]))
    trust = "" if hop["trusted"] else " (NOT trusted here)"
    return f"  hop {hop['hop']:<3} {hop['site']}, {hop['images']} images, {day}, signed by {hop['signer']}{trust}; " + (
        ", ".join(scores) if scores else "no scores"
    )


def _spoken(fingerprint: str) -> str:
    """The groups that a telephone call compares (as `relay keys fingerprint` prints them)."""
    return " ".join(fingerprint[i : i + 4] for i in range(0, 32, 4))
