"""Create the FastAPI application of one site: open its parts, add middleware and routes, load models."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import SQLAlchemyError

import relay_core
from relay_core.errors import RelayError
from relay_core.inference import Decoders
from services.api import docs, metrics, problems, site_page
from services.api.deps import ServiceParts, identify
from services.api.inference import Host, Intake, Turns, oip
from services.api.middleware import MAX_BODY, BodyLimit, BodyPace, KnownCaller, PlainBody, RequestContext
from services.api.readiness import Probe
from services.api.routes import ROUTERS, imports
from services.site import ArtifactStore, Refusal, Settings, doorbell, load_settings, registry, volumes
from services.site import reconcile as reconciler
from services.site.db import Database, migrate

THREADS = 64
"""The number of requests that are worked on at once; further ones wait."""
STREAM_THREADS = 8
"""The number of threads that event streams share."""
PREDICTIONS = 2
"""The number of images that people upload to be predicted at once."""
INTAKE = 2
"""The number of bodies of the largest size that may be in memory at once."""
NO_TELEMETRY: TelemetryConfig = {
    "tracing": False, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": False,
}  # fmt: skip
"""Turns the framework's telemetry off, which would hand bodies and arguments to any exporter that the environment names."""


def create_app(settings: Settings | None = None, *, reconcile: bool = True) -> FastAPI:
    """Create the REST service of one site.

    Args:
        settings: the site's settings; default: read from the environment.
        reconcile: whether this process also looks after lost jobs; otherwise `relay reconcile` must run somewhere.
    """
    settings = settings or load_settings(needs_key=True)
    meters = CollectorRegistry(auto_describe=False)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        site = await anyio.to_thread.run_sync(_open, settings, meters)
        app.state.parts = site
        threading.Thread(target=_warm_up, args=(site,), name="warm-up", daemon=True).start()
        stop, thread = threading.Event(), None
        if reconcile:
            arguments = (site.database, site.doorbell, settings, stop)
            thread = threading.Thread(target=reconciler.run, args=arguments, name="reconciler", daemon=True)
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if thread is not None:
                await anyio.to_thread.run_sync(thread.join, 5.0)
            site.host.close()
            site.decoders.close()
            await anyio.to_thread.run_sync(site.doorbell.close)
            site.database.close()

    app = FastAPI(
        title="relay site", version=relay_core.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        openapi_url=None, redirect_slashes=False, generate_unique_id_function=docs.operation_id, telemetry=NO_TELEMETRY,
    )  # fmt: skip
    app.add_middleware(BodyLimit, limits=lambda path: _body_limit(path, settings))
    app.add_middleware(PlainBody, encodings=lambda path: oip.ENCODINGS if _INFER.fullmatch(path) else ())
    app.add_middleware(BodyPace, grace=settings.body_seconds)
    app.add_middleware(KnownCaller, identify=identify)
    app.add_middleware(RequestContext, durations=metrics.durations(meters))
    problems.add_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    docs.serve_document(app)
    site_page.serve_page(app)
    return app


log = logging.getLogger(__name__)
_INFER = re.compile(r"/v2/models/.*/infer")
_PREDICT = re.compile(r"/api/v1/models/[^/]*/predict")


def _body_limit(path: str, settings: Settings) -> int | None:
    """Return the most bytes that a body may have at an address; None: its route counts them itself."""
    if path == imports.PATH:
        return None
    return settings.serve_max_mib << 20 if _INFER.fullmatch(path) or _PREDICT.fullmatch(path) else MAX_BODY


def _open(settings: Settings, meters: CollectorRegistry) -> ServiceParts:
    """Open the site's parts. Raises Refusal `not_ready` where the database is not migrated to this version."""
    database = Database(settings.database)
    current, head = migrate.current(database), migrate.head()
    if current != head:
        database.close()
        raise Refusal("not_ready", f"the database is at revision {current}, this version needs {head}: migrate it first")
    for problem in volumes.away(database, settings, "artifacts", "data").values():
        log.warning("%s", problem)
    store, body_limit = ArtifactStore(settings.artifact_folder), settings.serve_max_mib << 20
    meters.register(metrics.SiteCollector(settings, database, store))
    host = Host(settings, store, meters)
    return ServiceParts(
        settings, database, store, doorbell(settings.broker), Probe(settings, database, store, host), meters,
        anyio.CapacityLimiter(STREAM_THREADS), host, anyio.CapacityLimiter(PREDICTIONS),
        Turns(settings.serve_queue), Intake(INTAKE * body_limit),
        Decoders(settings.decode_memory_mib << 20, settings.decode_seconds),
    )  # fmt: skip


def _warm_up(site: ServiceParts) -> None:
    """Load the versions in production before the first caller comes; one that fails is logged, and refused when called."""
    try:
        with site.database.read() as session:
            rows = [registry.version(session, name, number) for name, number in registry.in_production(session).items()]
    except (RelayError, SQLAlchemyError) as error:
        log.warning("what is in production cannot be read: %s", error)
        return
    if rows:
        site.decoders.start()
    for row in rows:
        try:
            with site.host.borrow(row.name, row.version, row.digest):
                pass
        except RelayError as error:
            log.warning("model %s %d, in production, cannot be loaded: %s", row.name, row.version, error)
