"""OpenSSF Model Signing (OMS) v1, key mode, ECDSA P-256: the public tool `model_signing` verifies these signatures.

A Sigstore bundle v0.3 holds a DSSE envelope (https://github.com/secure-systems-lab/dsse) around an in-toto Statement v1
whose predicate lists each file's SHA-256; the subject's digest is the SHA-256 of these digests in the files' order by
name. The predicate's `recipient` is ours: other verifiers ignore it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relay_core.bundle import canonical
from relay_core.bundle.keys import KeyFolder
from relay_core.bundle.trust import verify
from relay_core.bundle.values import is_digest
from relay_core.errors import BundleError

_MEDIA = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"


def envelope(payload: bytes, payload_type: str, keys: KeyFolder) -> dict[str, Any]:
    """A DSSE envelope. Raises BundleError as `KeyFolder.sign`."""
    (signature,) = keys.sign(_authenticated(payload, payload_type))
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
    }


def _authenticated(payload: bytes, payload_type: str) -> bytes:
    """DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def opened(found: Mapping[str, Any], payload_type: str, public_key: str, what: str) -> bytes:
    """The payload of an envelope, verified. Raises BundleError `signature_invalid`."""
    try:
        (one,) = found["signatures"]
        payload = base64.b64decode(found["payload"], validate=True)
        signature = base64.b64decode(one["sig"], validate=True)
        right = found["payloadType"] == payload_type
    except (KeyError, TypeError, ValueError):
        raise BundleError("signature_invalid", f"{what} is not signed in a way that is known here") from None
    if not right or not verify(public_key, _authenticated(payload, payload_type), signature):
        raise BundleError("signature_invalid", f"{what} was changed after it was signed, or signed with another key")
    return payload


def root_digest(digests: Mapping[str, str]) -> str:
    """One digest for all files: the SHA-256 of theirs, in the order of the names."""
    return hashlib.sha256(b"".join(bytes.fromhex(digests[name]) for name in sorted(digests))).hexdigest()


def sign(name: str, digests: Mapping[str, str], recipient: str | None, keys: KeyFolder) -> bytes:
    """The signature over files.

    Args:
        name: what they are together.
        digests: file name -> SHA-256.
        recipient: fingerprint of the one site that it is meant for.
        keys: the signer's.
    """
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root_digest(digests)}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": ["signature.json"],
            },
            "resources": [{"name": n, "algorithm": "sha256", "digest": digests[n]} for n in sorted(digests)],
            "recipient": recipient,
        },
    }  # fmt: skip
    return canonical.dump({
        "mediaType": _MEDIA,
        "verificationMaterial": {"publicKey": {"hint": keys.card.fingerprint}, "tlogEntries": []},
        "dsseEnvelope": envelope(canonical.dump(statement), _PAYLOAD, keys),
    })  # fmt: skip


@dataclass(frozen=True)
class Signature:
    """A signature as it was read, not yet verified."""

    hint: str
    """Fingerprint of the key."""
    found: Mapping[str, Any]

    @classmethod
    def read(cls, data: bytes) -> Signature:
        """Raises BundleError `signature_invalid`."""
        try:
            found = json.loads(data)
            hint = found["verificationMaterial"]["publicKey"]["hint"]
            if found["mediaType"] != _MEDIA or not is_digest(hint):
                raise ValueError
            return cls(hint, found["dsseEnvelope"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BundleError("signature_invalid", "signature.json is not a model signature (OMS v1, key mode)") from None

    def verify(self, public_key: str) -> tuple[dict[str, str], str | None]:
        """What was signed: file name -> SHA-256, and the recipient. Raises BundleError `signature_invalid`."""
        payload = opened(self.found, _PAYLOAD, public_key, "the bundle")
        try:
            statement = json.loads(payload)
            predicate = statement["predicate"]
            digests = {str(item["name"]): str(item["digest"]) for item in predicate["resources"]}
            (subject,) = statement["subject"]
            sound = (
                statement["_type"] == _STATEMENT
                and statement["predicateType"] == _PREDICATE
                and all(item["algorithm"] == "sha256" for item in predicate["resources"])
                and len(digests) == len(predicate["resources"])
                and subject["digest"]["sha256"] == root_digest(digests)
            )
            if sound:
                return digests, predicate.get("recipient")
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise BundleError("signature_invalid", "the signed statement is not one of OpenSSF Model Signing v1")
