"""Call a running site over its REST API, and print what the commands show to a person."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from services.client import models
    from services.client.bundles import bring, export_checkpoint, exports_table, imports_table, show_import
    from services.client.http import Client
    from services.client.models import export_model, models_table
    from services.client.runs import submit_run, upload_run
    from services.client.tables import jobs_table, show_status, tokens_table, watch_job
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        ["models"],
        {
            "bundles": ["bring", "export_checkpoint", "exports_table", "imports_table", "show_import"],
            "http": ["Client"],
            "models": ["export_model", "models_table"],
            "runs": ["submit_run", "upload_run"],
            "tables": ["jobs_table", "show_status", "tokens_table", "watch_job"],
        },
    )
