"""Converts files of the published code and of torchvision into those of relay.

Only the module `pickled` reads pickles, in a process of its own.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from relay_core.conversion.isolated import convert_pretrained
    from relay_core.conversion.published import convert
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        [],
        {
            "isolated": ["convert_pretrained"],
            "published": ["convert"],
        },
    )
