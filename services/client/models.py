"""Carry out the command `relay models`, and print what it shows to a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from relay_core.errors import RelayError
from relay_core.inference import SCORE
from relay_core.metrics import metrics_of
from services.client.http import Client
from services.client.tables import show_table, watch_job


def models_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table with one row for each model version; a star marks the version in production."""
    cells = []
    for row in rows:
        star, size = "*" if row["production"] else "", f"{row['size'] / 1e6:.1f}"
        cells.append((
            row["name"], str(row["version"]), star, row["precision"], size, proved(row), row["created_at"][:10],
        ))  # fmt: skip
    headers = ("model", "version", "", "precision", "MB", "score by test set", "made")
    show_table(headers, cells, shortened=["score by test set"])


def proved(row: dict[str, Any]) -> str:
    """Return a version's Dice, or a classifier's balanced accuracy, on each test set as one line of text."""
    task = row["facts"].get("task", "segmentation")
    scores = (f"{site} {metrics[SCORE[task]]:.3f}" for site, metrics in row["proof"]["tests"].items())
    return f"{metrics_of(task)[0].short} {', '.join(scores)}"


def export_model(client: Client, checkpoint_id: str | None, name: str | None, precision: str) -> dict[str, Any]:
    """Have a checkpoint exported as a model version and proved on the test sets; return {model, version}.

    Args:
        client: client of the service.
        checkpoint_id: id of the checkpoint; None: the newest that was trained here.
        name: name of the model; None: the service takes it from the run's name.
        precision: `fp32`, `fp16` or `int8`.

    Raises:
        ServiceRefused, ServiceUnreachable: see `Client`.
        RelayError: there is no checkpoint.
    """
    if checkpoint_id is None:
        rows = client.pages("/api/v1/checkpoints")
        trained_ids = (row["id"] for row in rows if client.call("GET", f"/api/v1/jobs/{row['job_id']}")["kind"] == "train")
        checkpoint_id = next(trained_ids, None)
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
    """Print how a version compares with the one in production, then put it into production.

    Raises:
        ServiceRefused: `reason_missing` where it is worse on a test set, and other refusals.
    """
    show_comparison(client.call("GET", f"/api/v1/models/{name}/versions/{version}/comparison"))
    _change_production(client, name, "promote", {"version": version, "reason": reason})


def roll_back(client: Client, name: str, reason: str) -> None:
    """Put the version before back into production. Raises ServiceRefused."""
    _change_production(client, name, "rollback", {"reason": reason})


def _change_production(client: Client, name: str, action: str, body: dict[str, Any]) -> None:
    model = client.call("GET", f"/api/v1/models/{name}")
    changed = client.call("POST", f"/api/v1/models/{name}/{action}", json=body, headers={"If-Match": f'"{model["number"]}"'})
    print(f"{name}: version {changed['version']} is in production")


def show_comparison(compared: dict[str, Any]) -> None:
    """Print the score on each test set of the version in production and of the new one."""
    rows = []
    for row in compared["sites"]:
        scores = ["-" if row[key] is None else f"{row[key]:.3f}" for key in ("current", "new")]
        rows.append((row["site"], *scores, "-" if row["difference"] is None else f"{row['difference']:+.3f}"))
    show_table(("test set", "in production", "new", "difference"), rows, shortened=["test set"])
    if compared["worse"]:
        print(f"worse on {', '.join(compared['worse'])}, or not tested there: --reason is needed")
