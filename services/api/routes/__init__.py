"""The addresses, one module a noun."""

from services.api.routes import (
    audit,
    checkpoints,
    datasets,
    evaluations,
    exports,
    imports,
    jobs,
    models,
    runs,
    story,
    system,
    v2,
)

ROUTERS = (
    system.router,
    datasets.router,
    runs.router,
    jobs.router,
    story.router,
    checkpoints.router,
    evaluations.router,
    exports.router,
    imports.router,
    models.router,
    v2.router,
    audit.router,
)

__all__ = ["ROUTERS"]
