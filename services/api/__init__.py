"""Serve the REST API of one site; this process never imports torch."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from services.api.migration import bring_up_to_date
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        [],
        {
            "migration": ["bring_up_to_date"],
        },
    )
