"""Writes and reads canonical JSON, so that equal values have equal digests: sorted keys, no spaces, UTF-8, no NaN."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from relay_core.errors import BundleError


def dump(value: Any) -> bytes:
    """Return a value as canonical JSON. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def load(data: bytes, what: str) -> Any:
    """Read canonical JSON.

    Args:
        data: the JSON text in UTF-8.
        what: the name of the source, for the error message.

    Raises:
        BundleError: `bundle_damaged` where `data` is not JSON, or not in the canonical form (a repeated key, for example).
    """
    try:
        value = json.loads(data)
        if dump(value) == data:
            return value
    except (ValueError, RecursionError):
        pass
    raise BundleError("bundle_damaged", f"{what} is not canonical JSON")


def sha256(data: bytes) -> str:
    """Return the SHA-256 digest of data in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
