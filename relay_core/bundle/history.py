"""Writes and checks a model's history: one record per hop, chained by hashes, each signed by the site of that hop."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from relay_core.bundle import canonical
from relay_core.bundle.audit import is_audit_fact
from relay_core.bundle.differential import is_privacy_fact
from relay_core.bundle.keys import KeyFolder
from relay_core.bundle.trust import Roster, fingerprint, verify
from relay_core.bundle.values import are_metrics, is_count, is_digest, is_moment, is_name, is_version
from relay_core.errors import BundleError

MAX_HOPS = 1000
_FIELDS = frozenset({
    "hop", "task_id", "site", "run", "parent", "weights", "images", "steps", "metrics", "relay", "created_at", "signer",
    "previous", "signature",
})  # fmt: skip
_OPTIONAL = {"audit": is_audit_fact, "privacy": is_privacy_fact}
"""Fields that are there only where the site said something about a privacy audit, or trained privately."""
Record = dict[str, Any]


def link(record: Record) -> str:
    """Return the SHA-256 of a record, which the next record of the chain holds as its `previous`."""
    return canonical.sha256(canonical.dump(record))


def add(history: Sequence[Record], record: Mapping[str, Any], keys: KeyFolder) -> list[Record]:
    """Return the history with one more record, linked to the last one and signed. Raises BundleError as `KeyFolder.sign`."""
    card = keys.card
    signer = {"name": card.name, "fingerprint": card.fingerprint, "public_key": card.public_key}
    unsigned = {**record, "signer": signer, "previous": link(history[-1]) if history else None}
    (signature,) = keys.sign(_signed_bytes(unsigned))
    return [*history, {**unsigned, "signature": base64.b64encode(signature).decode()}]


def _signed_bytes(record: Mapping[str, Any]) -> bytes:
    return b"relay hop 1\0" + canonical.dump({key: value for key, value in record.items() if key != "signature"})


def check(history: Any, roster: Roster | None) -> list[Record]:
    """Return the records if they are an unbroken chain from the first site.

    Args:
        history: the parsed content of `history.json`.
        roster: the keys that this site trusts; None accepts every key that verifies its own record's signature.

    Raises:
        BundleError: `history_broken` where a record is malformed, not linked or not signed by its site; `signer_unknown` or
            `signer_revoked` where the roster does not trust a signer.
    """
    if not isinstance(history, list) or not 1 <= len(history) <= MAX_HOPS:
        raise BundleError("history_broken", "history.json is not a list of hops")
    for number, record in enumerate(history, 1):
        _check_record(record, number, history[number - 2] if number > 1 else None)
        if roster is not None:
            signer = record["signer"]["fingerprint"]
            roster.require(signer, record["run"], f"hop {number} of the history ({record['site'][:100]})")
    return history


def _check_record(record: Any, number: int, previous_record: Record | None) -> None:
    try:
        signer, signature = record["signer"], base64.b64decode(record["signature"], validate=True)
        sound = (
            record.keys() - _OPTIONAL.keys() == _FIELDS
            and all(is_sound(record[key]) for key, is_sound in _OPTIONAL.items() if key in record)
            and record["hop"] == number
            and all(is_count(record[key]) for key in ("hop", "task_id", "images", "steps"))
            and is_name(record["site"])
            and is_version(record["relay"])
            and are_metrics(record["metrics"])
            and is_moment(record["created_at"])
            and is_digest(record["run"])
            and is_digest(record["weights"])
            and record["previous"] == (link(previous_record) if previous_record else None)
            and (is_digest(record["parent"]) if previous_record else record["parent"] is None)
            and (previous_record is None or record["run"] == previous_record["run"])
            and signer.keys() == {"name", "fingerprint", "public_key"}
            and is_name(signer["name"])
            and signer["fingerprint"] == fingerprint(signer["public_key"])
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise BundleError(
            "history_broken", f"hop {number} of the history is not sound, or does not follow from the one before"
        )
    if not verify(signer["public_key"], _signed_bytes(record), signature):
        raise BundleError("history_broken", f"hop {number} of the history was not signed by the site that it names")
