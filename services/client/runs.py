"""Upload a run file to a service, register its image folders and queue its training."""

from __future__ import annotations

from typing import Any

from relay_core.config import RunFile, SiteSettings
from services.client.http import Client, ServiceRefused


def submit_run(
    client: Client, run: RunFile, site: int | None, data: str, key: str | None = None, *, checkpoint: str | None = None,
    until: str = "end",
) -> dict[str, Any]:  # fmt: skip
    """Upload a run, register the image folders of its sites that the service has, and queue the training; return its job.

    Args:
        client: client of the service.
        run: the run file.
        site: task_id of the only site to train; None: the site that the service says it is, or all sites.
        data: folder below the service's data root that the run's `img_folder`s lie in.
        key: Idempotency-Key of the request for the training; None: a new one.
        checkpoint: id of the checkpoint to go on from; None: the newest that fits.
        until: where the training ends, `end` or `solver`.

    Raises:
        ServiceRefused, ServiceUnreachable: see `Client.call`.
    """
    uploaded = upload_run(client, run, data)
    asked = {"site": site, "checkpoint_id": checkpoint, "until": until if until != "end" else None}
    body: dict[str, Any] = {"kind": "train", "run_id": uploaded["id"]}
    return client.submit(body | {name: value for name, value in asked.items() if value is not None}, key)


def upload_run(client: Client, run: RunFile, data: str) -> dict[str, Any]:
    """Upload a run and register the image folders of its sites that the service has; return the run.

    Arguments and errors are those of `submit_run`.
    """
    headers = {"Content-Type": "application/yaml"}
    uploaded = client.call("POST", "/api/v1/runs", params={"name": run.path.name}, content=run.canonical(), headers=headers)
    registered = {row["name"] for row in client.pages("/api/v1/datasets")}
    for settings in (run.site(task_id) for task_id in run.all_ids):
        if settings.name not in registered:
            _register(client, settings, data)
    return dict(uploaded)


def _register(client: Client, settings: SiteSettings, data: str) -> None:
    """Register a site's image folder; one that the service does not have is left to the training to report."""
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
