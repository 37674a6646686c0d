"""Carry out the commands `relay exports` and `relay imports`, and print what they show to a person."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from relay_core.bundle import audit_words, privacy_words
from relay_core.metrics import headlines
from services.client.http import Client
from services.client.http import Progress as Show
from services.client.tables import show_table, watch_job


def export_checkpoint(
    client: Client,
    checkpoint_id: str,
    to: str | None,
    half: bool,
    out: Path | None,
    override: str | None = None,
    discriminators: bool = True,
) -> Path:
    """Have a checkpoint's bundle built, follow the job and fetch the file; return its path.

    Args:
        client: client of the service.
        checkpoint_id: id of the checkpoint.
        to: name or fingerprint of the site that the bundle is encrypted for; None: it is not encrypted.
        half: carry the weights in half precision.
        out: file to write; None: a file in the current folder, named after the bundle.
        override: why it may leave although no privacy audit of it passed.
        discriminators: whether they travel; else the next site's start anew.

    Raises:
        ServiceRefused, ServiceUnreachable, DownloadDamaged: see `Client`.
    """
    request = {"checkpoint_id": checkpoint_id, "recipient": to, "half": half}
    request |= {"override": override} if override is not None else {}
    job = client.export(request | ({} if discriminators else {"discriminators": False}))
    watch_job(client, job["id"])
    bundle_id = client.call("GET", f"/api/v1/jobs/{job['id']}")["result"]["bundle"]
    target = out or Path(f"{bundle_id}.relay")
    with _byte_progress(f"fetching {target.name}") as show:
        client.download(f"/api/v1/exports/{bundle_id}/download", target, show)
    return target


def bring(client: Client, file: Path, purpose: str) -> dict[str, Any]:
    """Upload a bundle and follow its verification; return the import, which an operator then accepts or rejects.

    Args:
        client: client of the service.
        file: the bundle.
        purpose: `train` or `evaluate`.

    Raises:
        ServiceRefused, ServiceUnreachable: see `Client`.
    """
    with _byte_progress(f"sending {file.name}") as show:
        imported = client.upload(file, purpose, show)
    watch_job(client, imported["job_id"])
    return dict(client.call("GET", f"/api/v1/imports/{imported['id']}"))


@contextmanager
def _byte_progress(description: str) -> Iterator[Show]:
    """Show a progress bar of bytes on a terminal, and nothing elsewhere; yield the callback that moves the bar."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def exports_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table with one row for each export."""
    cells = []
    for row in rows:
        facts = row["facts"]
        to = facts["recipient"][:8] if facts["recipient"] else "anybody"
        cells.append((row["id"], str(facts["hop"]), facts["site"], to, f"{row['size'] / 1e6:.1f}", row["created_at"][:10]))
    show_table(("export", "hop", "site", "for", "MB", "built"), cells, shortened=["site"])


def imports_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table with one row for each import."""
    cells = []
    for row in rows:
        facts = row["facts"] or {}
        signer = facts.get("signer", {}).get("name", "")
        hop = str(facts.get("hop", ""))
        cells.append((row["id"], row["state"], row["purpose"], hop, facts.get("site", ""), signer))
    show_table(("import", "state", "for", "hop", "site", "signer"), cells, shortened=["site", "signer"])


def show_import(row: dict[str, Any]) -> None:
    """Print what a person checks before accepting or rejecting an import: signer, history, metrics."""
    lines = [f"{row['id']}  {row['state']}, to {row['purpose']}"]
    if row["error"]:
        lines.append(f"  {row['error']['code']}: {row['error']['message']}")
    if facts := row["facts"]:
        lines += [
            f"  run     {facts['run']}",
            f"  model   {facts['digest']}, hop {facts['hop']} by {facts['site']}",
            f"  signer  {facts['signer']['name']}, key {_fingerprint_groups(facts['signer']['fingerprint'])}",
            *map(_hop_line, facts["history"]),
        ]
    if row["state"] == "quarantined":
        lines.append(f"  relay imports --accept {row['id']}\n  relay imports --reject {row['id']} --reason TEXT")
    print("\n".join(lines))


def _hop_line(hop: dict[str, Any]) -> str:
    """Describe one hop of a model's history in one line: site, images, day, signer, scores."""
    day = time.strftime("%Y-%m-%d", time.gmtime(hop["created_at"]))
    trust = "" if hop["trusted"] else " (NOT trusted here)"
    privacy = audit_words(hop.get("audit")) + privacy_words(hop.get("privacy"))
    return (
        f"  hop {hop['hop']:<3} {hop['site']}, {hop['images']} images, {day}, signed by {hop['signer']}{trust}; "
        f"{headlines(hop['metrics'])}, {privacy}"
    )


def _fingerprint_groups(fingerprint: str) -> str:
    """Return the groups of a fingerprint that two people compare by telephone, as `relay keys fingerprint` prints them."""
    return " ".join(fingerprint[i : i + 4] for i in range(0, 32, 4))
