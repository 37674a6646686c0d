"""Signs and verifies with OpenSSF Model Signing (OMS) v1 in key mode, ECDSA P-256.

The public tool `model_signing` verifies these signatures too.

A Sigstore bundle v0.3 holds a DSSE envelope (https://github.com/secure-systems-lab/dsse) around an in-toto Statement v1
whose predicate lists each file's SHA-256; the subject's digest is the SHA-256 of these digests in the files' order by
name. The predicate's field `recipient` is an addition of relay, which other verifiers ignore.
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
    """Sign a payload and return it in a DSSE envelope. Raises BundleError as `KeyFolder.sign`."""
    (signature,) = keys.sign(_pre_authentication_encoding(payload, payload_type))
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
    }


def _pre_authentication_encoding(payload: bytes, payload_type: str) -> bytes:
    """Return DSSE's pre-authentication encoding (PAE) of a payload: the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def opened(found: Mapping[str, Any], payload_type: str, public_key: str, what: str) -> bytes:
    """Verify a DSSE envelope and return its payload.

    Args:
        found: the envelope as it was read.
        payload_type: the payload type that it must state.
        public_key: the PEM text of the signer's key.
        what: the name of the signed thing, for the error message.

    Raises:
        BundleError: `signature_invalid`.
    """
    try:
        (entry,) = found["signatures"]
        payload = base64.b64decode(found["payload"], validate=True)
        signature = base64.b64decode(entry["sig"], validate=True)
        type_matches = found["payloadType"] == payload_type
    except (KeyError, TypeError, ValueError):
        raise BundleError("signature_invalid", f"{what} is not signed in a way that is known here") from None
    if not type_matches or not verify(public_key, _pre_authentication_encoding(payload, payload_type), signature):
        raise BundleError("signature_invalid", f"{what} was changed after it was signed, or signed with another key")
    return payload


def root_digest(digests: Mapping[str, str]) -> str:
    """Return one digest for all files: the SHA-256 over their digests (32 bytes each), in the order of the names."""
    return hashlib.sha256(b"".join(bytes.fromhex(digests[name]) for name in sorted(digests))).hexdigest()


def sign(name: str, digests: Mapping[str, str], recipient: str | None, keys: KeyFolder) -> bytes:
    """Sign files and return the content of `signature.json`.

    Args:
        name: the name of the files as a whole.
        digests: file name -> SHA-256, hexadecimal.
        recipient: the fingerprint of the one site that the files are meant for; None: they are for anyone.
        keys: the signer's keys.

    Raises:
        BundleError: as `KeyFolder.sign`.
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
    """Holds a signature as it was read from `signature.json`, not yet verified."""

    hint: str
    """The fingerprint of the key that made the signature, as the file claims."""
    found: Mapping[str, Any]
    """The DSSE envelope."""

    @classmethod
    def read(cls, data: bytes) -> Signature:
        """Parse the content of `signature.json`. Raises BundleError `signature_invalid`."""
        try:
            content = json.loads(data)
            hint = content["verificationMaterial"]["publicKey"]["hint"]
            if content["mediaType"] != _MEDIA or not is_digest(hint):
                raise ValueError
            return cls(hint, content["dsseEnvelope"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BundleError("signature_invalid", "signature.json is not a model signature (OMS v1, key mode)") from None

    def verify(self, public_key: str) -> tuple[dict[str, str], str | None]:
        """Verify the signature; return the signed digests (file name -> SHA-256) and the recipient's fingerprint or None.

        Raises:
            BundleError: `signature_invalid`.
        """
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
