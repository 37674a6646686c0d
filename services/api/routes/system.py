"""Serve what the service says of itself: whether it is alive and ready, its metrics, its version and its workers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

import relay_core
from services.api import schemas
from services.api.deps import Site, Viewer
from services.api.docs import refusals, success
from services.site import CATALOGUE, Refusal, workers

router = APIRouter(tags=["system"])


@router.get("/healthz")
async def health(site: Site) -> schemas.Health:
    """The process answers; this says nothing about what it needs."""
    return schemas.Health(instance=site.settings.instance)


@router.get(
    "/readyz",
    responses={503: {"description": "Not ready; the checks say why.", "model": schemas.Readiness}},
)
def ready(site: Site, response: Response) -> schemas.Readiness:
    """Whether the site can take jobs and carry them out: database, storage, volumes, migrations, workers, device."""
    readiness = site.probe.look()
    response.status_code = 503 if readiness.status == "not_ready" else 200
    return readiness


@router.get(
    "/metrics",
    response_class=Response,
    responses=success(200, "Prometheus' text format.", media_type="text/plain", schema={"type": "string"}),
)
def metrics(site: Site) -> Response:
    """The metrics that Prometheus reads."""
    return Response(generate_latest(site.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/problems/{code}", responses=refusals("not_found", "invalid_request", public=True))
async def explain_problem(
    code: Annotated[str, Path(pattern=r"^[a-z_]{1,50}$", examples=["not_found"])],
) -> schemas.CatalogueEntry:
    """What a problem's type means."""
    entry = CATALOGUE.get(code)
    if entry is None:
        raise Refusal("not_found", "there is no problem of this type")
    return schemas.CatalogueEntry(type=f"/problems/{code}", title=entry.title, status=entry.status)


@router.get("/api/v1/system", responses=refusals())
def describe_system(site: Site, caller: Viewer) -> schemas.System:
    """Version, storage, and the workers with their devices."""
    settings = site.settings
    with site.database.read() as session:
        rows = workers.lately(session, workers.FORGET)
    return schemas.System(
        version=relay_core.__version__,
        site_name=settings.site_name,
        role=caller.role,
        database=site.database.url.get_backend_name(),
        storage_free_mib=site.store.free_mib(),
        storage_min_free_mib=settings.min_free_mib,
        readiness=site.probe.look(),
        workers=[schemas.Worker.model_validate(row) for row in rows],
    )
