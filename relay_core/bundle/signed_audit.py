"""Signs the report of a privacy audit, and reads one that this site signed: only such a one opens its release gate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relay_core.bundle import canonical, signing
from relay_core.bundle.audit import check_audit
from relay_core.bundle.keys import KeyFolder
from relay_core.errors import BundleError

PAYLOAD = "application/vnd.relay.audit+json"
MAX_BYTES = 1 << 20


def sign_audit(report: Mapping[str, Any], keys: KeyFolder) -> bytes:
    """Return a report, signed by this site, as its gate reads it. Raises BundleError as `KeyFolder.sign`."""
    return canonical.dump(signing.envelope(canonical.dump(dict(report)), PAYLOAD, keys))


def read_audit(path: Path, keys: KeyFolder) -> dict[str, Any]:
    """Read a report that this site signed.

    Raises:
        BundleError: `audit_invalid`: it is none, or was changed after it was signed, or signed elsewhere; `key_missing`.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    try:
        if len(content) > MAX_BYTES:
            raise ValueError("it is larger than an audit can be")
        payload = signing.opened(canonical.load(content, path.name), PAYLOAD, keys.card.public_key, path.name)
        report = canonical.load(payload, path.name)
        check_audit(report)
    except (BundleError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BundleError) and error.code.startswith("key"):
            raise
        raise BundleError(
            "audit_invalid", f"{path.name} is not a privacy audit that this site signed ({error!s:.200}): audit again"
        ) from None
    checked: dict[str, Any] = report
    return checked
