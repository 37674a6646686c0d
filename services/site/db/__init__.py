"""Provide the site's database: tables, sessions and migrations."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from services.site.db import migrate, roles
    from services.site.db.engine import Database, DatabaseError
    from services.site.db.models import (
        SLACK,
        Artifact,
        Attachment,
        AuditRecord,
        Base,
        BrowserSession,
        Bundle,
        Checkpoint,
        Dataset,
        DeviceLease,
        Evaluation,
        Job,
        JobEvent,
        Lockout,
        Metric,
        Model,
        ModelName,
        Promotion,
        RosterCopy,
        Run,
        Token,
        Unneeded,
        Volume,
        Worker,
        clock,
        lately,
        new_id,
        now,
        passed,
    )
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        ["migrate", "roles"],
        {
            "engine": ["Database", "DatabaseError"],
            "models": [
                "SLACK",
                "Artifact",
                "Attachment",
                "AuditRecord",
                "Base",
                "BrowserSession",
                "Bundle",
                "Checkpoint",
                "Dataset",
                "DeviceLease",
                "Evaluation",
                "Job",
                "JobEvent",
                "Lockout",
                "Metric",
                "Model",
                "ModelName",
                "Promotion",
                "RosterCopy",
                "Run",
                "Token",
                "Unneeded",
                "Volume",
                "Worker",
                "clock",
                "lately",
                "new_id",
                "now",
                "passed",
            ],
        },
    )
