"""The JSON part of a checkpoint file, read without its tensors and without torch."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay_core.errors import CheckpointError

MAX_HEADER = 100 << 20
"""Bytes of a header that is read."""


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint on disk, as far as its header tells; the engine verified the rest when it wrote or read it."""

    path: Path
    digest: str
    meta: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether its training used up its budget."""
        return int(self.meta["step"]) >= int(self.meta["steps"])


def read_header(path: Path) -> CheckpointFile:
    """The JSON part of a checkpoint, without its tensors and without torch.

    Raises:
        CheckpointError: not a checkpoint of relay.
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
