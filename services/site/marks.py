"""Keep two small files in the root of a volume: one proves whose volume it is, one what the site's database had reached.

`.relay-volume` holds the site's id. `.relay-known`, beside the artifacts, holds the newest row of the audit log that was
there when it was last written: a database without this row is older than the artifacts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from relay_core.files import write_atomically

VOLUME = ".relay-volume"
KNOWN = ".relay-known"


def is_marked(folder: Path) -> bool:
    """Return whether a folder holds a mark, whosever it is; False where that cannot be seen."""
    try:
        return (folder / VOLUME).is_file()
    except OSError:  # a share that does not answer, for one
        return False


def read(path: Path) -> dict[str, Any] | None:
    """Return what a mark holds; None where there is none, nothing where it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write(path: Path, **content: Any) -> None:
    """Write a mark, whole or not at all; its folder is created."""
    write_atomically(path, json.dumps({"format": 1, **content}).encode())
