"""The command `relay`: its subcommands, and what they read and print."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from relay_core.cli.app import main
    from relay_core.cli.keys import witnesses
    from relay_core.cli.output import Terminal
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        [],
        {
            "app": ["main"],
            "keys": ["witnesses"],
            "output": ["Terminal"],
        },
    )
