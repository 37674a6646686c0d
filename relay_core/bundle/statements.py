"""Signs single statements as lines of a file: JSON in a DSSE envelope, beside it the fingerprint of the signer's key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from relay_core.bundle import canonical, signing
from relay_core.bundle.keys import KeyFolder
from relay_core.bundle.trust import Card
from relay_core.bundle.values import spoken_fingerprint
from relay_core.errors import BundleError


def sign_statement(statement: Mapping[str, Any], kind: str, keys: KeyFolder) -> bytes:
    """Return the line, without its end, that states something in the site's name.

    Args:
        statement: what is stated, as data that JSON can hold.
        kind: the media type of such statements, which is signed too.
        keys: the signer's keys.

    Raises:
        BundleError: as `KeyFolder.sign`.
    """
    return canonical.dump({**signing.envelope(canonical.dump(dict(statement)), kind, keys), "key": keys.card.fingerprint})


def read_statement(line: bytes, kind: str, cards: Sequence[Card], where: str) -> dict[str, Any]:
    """Verify a line and return what it states.

    Args:
        line: the line.
        kind: the media type that it must have.
        cards: the cards of those whose word is taken.
        where: the name of the line, for the error message.

    Raises:
        BundleError: `bundle_damaged` for a line that is none; `signer_unknown`; `signature_invalid`.
    """
    try:
        envelope = json.loads(line)
        key = str(envelope["key"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BundleError("bundle_damaged", f"{where} cannot be read") from None
    card = next((card for card in cards if card.fingerprint == key), None)
    if card is None:
        raise BundleError(
            "signer_unknown", f"{where} was signed with the key {spoken_fingerprint(key)}, whose card was not given"
        )
    return dict(canonical.load(signing.opened(envelope, kind, card.public_key, where), where))
