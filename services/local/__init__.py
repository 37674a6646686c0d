"""Run a whole site on one machine, or several sites with a courier between them."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from services.local.demo import run_demo
    from services.local.up import run_up
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        [],
        {
            "demo": ["run_demo"],
            "up": ["run_up"],
        },
    )
