"""List the routers of all addresses, one module for each kind of thing that they serve."""

from services.api.routes import (
    audit,
    checkpoints,
    choices,
    datasets,
    evaluations,
    exports,
    imports,
    job_events,
    jobs,
    keys,
    models,
    predictions,
    runs,
    session,
    system,
    uploads,
    v2,
)

ROUTERS = (
    system.router,
    session.router,
    choices.router,
    datasets.router,
    runs.router,
    runs.previews,
    jobs.router,
    job_events.router,
    checkpoints.router,
    evaluations.router,
    exports.router,
    uploads.router,
    imports.router,
    keys.router,
    keys.previews,
    models.router,
    predictions.router,
    v2.router,
    audit.router,
)

__all__ = ["ROUTERS", "imports"]
