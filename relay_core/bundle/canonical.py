"""One way to write JSON, so that a digest of it means something: sorted keys, no spaces, UTF-8, no NaN."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from relay_core.errors import BundleError


def dump(value: Any) -> bytes:
    """Canonical JSON. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def load(data: bytes, what: str) -> Any:
    """Read canonical JSON.

    Raises:
        BundleError: `bundle_damaged` where `data` is not JSON, or not in the canonical form (keys given twice, for one).
    """
    try:
        value = json.loads(data)
        if dump(value) == data:
            return value
    except (ValueError, RecursionError):
        pass
    raise BundleError("bundle_damaged", f"{what} is not canonical JSON")


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()
