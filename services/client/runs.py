"""From a run file at hand to a queued training."""

from __future__ import annotations

from typing import Any

from relay_core.config import RunFile, SiteSettings
from services.client.http import Client, ServiceRefused


def submit_run(client: Client, run: RunFile, site: int | None, data: str, key: str | None = None) -> dict[str, Any]:
    """Upload a run, register the image folders of its sites that the service has, queue the training.

    Args:
        client: of the service.
        run: the run file.
        site: train this site alone; None: what the service says this site is, or all of them.
        data: folder below the service's data root that the run's `img_folder`s lie in.
        key: Idempotency-Key of the training; None: a new one.

    Raises:
        ServiceRefused, ServiceUnreachable: see `Client.call`.
    """
    kept = upload_run(client, run, data)
    body: dict[str, Any] = {"kind": "train", "run_id": kept["id"]}
    return client.submit({**body, "site": site} if site is not None else body, key)


def upload_run(client: Client, run: RunFile, data: str) -> dict[str, Any]:
    """Upload a run, and register the image folders of its sites that the service has. Raises as `submit_run`."""
    headers = {"Content-Type": "application/yaml"}
    kept = client.call("POST", "/api/v1/runs", params={"name": run.path.name}, content=run.canonical(), headers=headers)
    known = {row["name"] for row in client.pages("/api/v1/datasets")}
    for settings in (run.site(task_id) for task_id in run.all_ids):
        if settings.name not in known:
            _register(client, settings, data)
    return dict(kept)


def _register(client: Client, settings: SiteSettings, data: str) -> None:
    """Register a site's folder where the service has it; the training says what is missing."""
    folder = settings.data.img_folder
    if folder is None:
        return
    options = settings.data.model_dump(
        mode="json", exclude_defaults=True, exclude={"task_id", "task_name", "img_folder", "root_path"}
    )
    body = {
        "name": settings.name,
        "path": f"{data}/{folder}".strip("/"),
        "layout": settings.dataset.name,
        "options": options,
    }
    try:
        client.call("POST", "/api/v1/datasets", json=body)
    except ServiceRefused as error:
        if error.status != 404:
            raise
