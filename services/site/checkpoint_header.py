"""Read the JSON header of a checkpoint file, without its tensors and without torch."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay_core.errors import CheckpointError

MAX_HEADER = 100 << 20
"""Largest number of bytes of a header that is read."""


@dataclass(frozen=True)
class CheckpointFile:
    """Describes a checkpoint file as its header does; the engine verifies the rest when it writes or reads it."""

    path: Path
    digest: str
    meta: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Return whether the training did all its steps."""
        return int(self.meta["step"]) >= int(self.meta["steps"])

    @property
    def solver_ready(self) -> bool:
        """Return whether the solver had its budget, whatever its generators still need."""
        return int(self.meta["step"]) >= int(self.meta.get("solver_steps", self.meta["steps"]))


def read_header(path: Path) -> CheckpointFile:
    """Read the JSON header of a checkpoint file, without its tensors and without torch.

    Raises:
        CheckpointError: the file cannot be read, or is not a checkpoint of relay.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))["__metadata__"]
        return CheckpointFile(path, str(header["digest"]), json.loads(header["relay"]))
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise CheckpointError(f"{path.name}: damaged or not a checkpoint of relay ({error})") from None
