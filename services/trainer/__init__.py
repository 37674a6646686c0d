"""Run a site's workers: they claim jobs from the database and run the relay core in processes of their own."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from services.trainer.process_guard import guarded
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        [],
        {
            "process_guard": ["guarded"],
        },
    )
