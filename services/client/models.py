"""What the command `relay models` does, and what it shows to a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from relay_core.errors import RelayError
from relay_core.inference import SCORE
from relay_core.metrics import metrics_of
from services.client.http import Client
from services.client.tables import watch_job


def models_table(rows: Sequence[dict[str, Any]]) -> None:
    """One row a version; a star marks what is in production."""
    table = Table(Column("model", no_wrap=True), "version", "", "precision", "MB", "score by test set", "made", box=None)
    for row in rows:
        scores = proved(row)
        star, size = "*" if row["production"] else "", f"{row['size'] / 1e6:.1f}"
        table.add_row(row["name"], str(row["version"]), star, row["precision"], size, scores, row["created_at"][:10])
    Console(highlight=False, markup=False).print(table)


def proved(row: dict[str, Any]) -> str:
    """The Dice, or a classifier's balanced accuracy, of a version on each test set."""
    task = row["facts"].get("task", "segmentation")
    scores = (f"{site} {found[SCORE[task]]:.3f}" for site, found in row["proof"]["tests"].items())
    return f"{metrics_of(task)[0].short} {', '.join(scores)}"


def export_model(client: Client, checkpoint_id: str | None, name: str | None, precision: str) -> dict[str, Any]:
    """Have a checkpoint, by default the newest that was trained here, exported and proved; return {model, version}.

    Raises:
        ServiceRefused, ServiceUnreachable: see `Client`.
        RelayError: there is no checkpoint.
    """
    if checkpoint_id is None:
        rows = client.pages("/api/v1/checkpoints")
        own = (row["id"] for row in rows if client.call("GET", f"/api/v1/jobs/{row['job_id']}")["kind"] == "train")
        checkpoint_id = next(own, None)
        if checkpoint_id is None:
            raise RelayError("nothing was trained here yet; name the checkpoint of an import")
    body = {
        "kind": "export_onnx",
        "checkpoint_id": checkpoint_id,
        "precision": precision,
        **({"name": name} if name else {}),
    }
    job = client.submit(body)
    watch_job(client, job["id"])
    return dict(client.call("GET", f"/api/v1/jobs/{job['id']}")["result"])


def promote(client: Client, name: str, version: int, reason: str | None) -> None:
    """Put a version into production, having shown how it compares.

    Raises:
        ServiceRefused: `reason_missing` where it is worse on a test set, and other refusals.
    """
    show_comparison(client.call("GET", f"/api/v1/models/{name}/versions/{version}/comparison"))
    _change(client, name, "promote", {"version": version, "reason": reason})


def roll_back(client: Client, name: str, reason: str) -> None:
    """Back to the version before. Raises ServiceRefused."""
    _change(client, name, "rollback", {"reason": reason})


def _change(client: Client, name: str, what: str, body: dict[str, Any]) -> None:
    present = client.call("GET", f"/api/v1/models/{name}")
    made = client.call("POST", f"/api/v1/models/{name}/{what}", json=body, headers={"If-Match": f'"{present["number"]}"'})
    print(f"{name}: version {made['version']} is in production")


def show_comparison(compared: dict[str, Any]) -> None:
    """The score on each test set, of the present version and the new one."""
    table = Table("test set", "in production", "new", "difference", box=None)
    for row in compared["sites"]:
        cells = ["-" if row[key] is None else f"{row[key]:.3f}" for key in ("current", "new")]
        table.add_row(row["site"], *cells, "-" if row["difference"] is None else f"{row['difference']:+.3f}")
    Console(highlight=False, markup=False).print(table)
    if compared["worse"]:
        print(f"worse on {', '.join(compared['worse'])}, or not tested there: --reason is needed")
