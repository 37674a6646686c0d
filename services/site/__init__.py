"""Provide what all processes of one site share: settings, database, jobs, artifacts, dispatch, errors, audit, access."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from services.site import (
        artifacts,
        audit,
        audit_heads,
        auth,
        backup,
        bundle_exchange,
        folders,
        job_plans,
        jobs,
        leases,
        reconcile,
        registry,
        restore,
        runs,
        sessions,
        sweep,
        trust,
        volumes,
        workers,
    )
    from services.site.artifacts import ArtifactStore
    from services.site.auth import Identity, Role
    from services.site.bundle_exchange import Purpose, Shown
    from services.site.checkpoint_header import CheckpointFile, read_header
    from services.site.dispatch import QUEUE, TASK, Doorbell, celery_app, doorbell
    from services.site.errors import CATALOGUE, Refusal
    from services.site.job_plans import JobPlan, need
    from services.site.jobs import ACTIVE, HELD, TERMINAL, Kind, State
    from services.site.leases import Claim, LeaseLost
    from services.site.registry import Precision
    from services.site.runs import run_file
    from services.site.settings import Settings, SettingsError, load_settings, role_passwords, site_of_keys
    from services.site.uploads import Upload
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        [
            "artifacts",
            "audit",
            "audit_heads",
            "auth",
            "backup",
            "bundle_exchange",
            "folders",
            "job_plans",
            "jobs",
            "leases",
            "reconcile",
            "registry",
            "restore",
            "runs",
            "sessions",
            "sweep",
            "trust",
            "volumes",
            "workers",
        ],
        {
            "artifacts": ["ArtifactStore"],
            "auth": ["Identity", "Role"],
            "bundle_exchange": ["Purpose", "Shown"],
            "checkpoint_header": ["CheckpointFile", "read_header"],
            "dispatch": ["QUEUE", "TASK", "Doorbell", "celery_app", "doorbell"],
            "errors": ["CATALOGUE", "Refusal"],
            "job_plans": ["JobPlan", "need"],
            "jobs": ["ACTIVE", "HELD", "TERMINAL", "Kind", "State"],
            "leases": ["Claim", "LeaseLost"],
            "registry": ["Precision"],
            "runs": ["run_file"],
            "settings": ["Settings", "SettingsError", "load_settings", "role_passwords", "site_of_keys"],
            "uploads": ["Upload"],
        },
    )
