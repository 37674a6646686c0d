"""Keep models in memory, and read and write the wire format in which programs call them."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from services.api.inference import hosting, oip
    from services.api.inference.batching import Hosted
    from services.api.inference.hosting import Host, Intake, Turns
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        ["hosting", "oip"],
        {
            "batching": ["Hosted"],
            "hosting": ["Host", "Intake", "Turns"],
        },
    )
