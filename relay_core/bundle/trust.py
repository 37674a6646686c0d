"""Who is trusted: the cards that sites show to each other, and the roster of those that this site believes."""

from __future__ import annotations

import base64
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from relay_core.bundle import canonical
from relay_core.bundle.values import is_name
from relay_core.errors import BundleError
from relay_core.files import write_atomically

HASH = ec.ECDSA(hashes.SHA256())
"""How everything here is signed, with keys on P-256."""


def fingerprint(public_key: str) -> str:
    """SHA-256 of a public key's PEM text, hexadecimal: the key hint of OpenSSF Model Signing."""
    return canonical.sha256(public_key.encode())


def spoken_fingerprint(value: str) -> str:
    """The first 128 bits of a fingerprint in groups to read aloud."""
    return " ".join(value[i : i + 4] for i in range(0, 32, 4))


def verify(public_key: str, message: bytes, signature: bytes) -> bool:
    """Whether an ECDSA P-256 SHA-256 signature is right; False too for a key that is none."""
    try:
        key = serialization.load_pem_public_key(public_key.encode())
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            return False
        key.verify(signature, message, HASH)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Card:
    """What a site shows to the others."""

    name: str
    public_key: str
    """PEM."""
    age: str
    """X25519 recipient, `age1...`."""
    proof: str = ""
    """Base64 signature by the key over name and recipient: nobody swapped the recipient."""

    @property
    def fingerprint(self) -> str:
        """Of the public key."""
        return fingerprint(self.public_key)

    def message(self) -> bytes:
        """What `proof` signs."""
        return canonical.dump({"relay card": 1, "name": self.name, "public_key": self.public_key, "age": self.age})

    def to_json(self) -> bytes:
        """The file's content."""
        return canonical.dump({"format": 1, **asdict(self)})

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Card:
        """Read a card. Raises BundleError `signature_invalid` or `bundle_damaged`."""
        import pyrage

        try:
            found = dict(canonical.load(data.strip(), where))
            if found.pop("format") != 1 or not all(isinstance(value, str) for value in found.values()):
                raise ValueError
            card = cls(**found)
            if not is_name(card.name):
                raise ValueError
            pyrage.x25519.Recipient.from_str(card.age)
            proof = base64.b64decode(card.proof, validate=True)
        except (BundleError, ValueError, TypeError, KeyError, pyrage.RecipientError):
            raise BundleError("bundle_damaged", f"{where} is not a site's card (card.json)") from None
        if not verify(card.public_key, card.message(), proof):
            raise BundleError("signature_invalid", f"{where}: the card was changed; ask the site for it again")
        return card


@dataclass(frozen=True)
class Trusted:
    """A line of the roster."""

    card: Card
    run: str | None = None
    """Run that the trust is for; None: every one."""
    added_at: float = 0.0
    revoked_at: float | None = None


class Roster:
    """Whom a site trusts."""

    def __init__(self, entries: list[Trusted]) -> None:
        self.entries = entries

    @classmethod
    def read(cls, path: Path) -> Roster:
        """Read a roster; one that does not exist is empty. Raises BundleError `bundle_damaged`."""
        if not path.is_file():
            return cls([])
        try:
            found = canonical.load(path.read_bytes().strip(), path.name)
            return cls([
                Trusted(Card(**entry["card"]), entry["run"], entry["added_at"], entry["revoked_at"])
                for entry in found["entries"]
            ])  # fmt: skip
        except (TypeError, KeyError):
            raise BundleError("bundle_damaged", f"{path} is not a roster") from None

    def write(self, path: Path) -> None:
        """Write it whole."""
        write_atomically(path, canonical.dump({"format": 1, "entries": [asdict(entry) for entry in self.entries]}))

    def of(self, key: str) -> Trusted | None:
        """The first entry of a fingerprint."""
        return next(iter(self._all_of(key)), None)

    def _all_of(self, key: str) -> list[Trusted]:
        """One for every run, or one for each of some."""
        return [entry for entry in self.entries if entry.card.fingerprint == key]

    def require(self, key: str, run: str | None, who: str) -> Card:
        """The card of a trusted signer.

        Args:
            key: fingerprint.
            run: digest of the run that it is about; None while that is not known.
            who: what was signed, for the message.

        Raises:
            BundleError: `signer_unknown`, `signer_revoked`.
        """
        entries = self._all_of(key)
        if any(entry.revoked_at is not None for entry in entries):
            name = entries[0].card.name
            raise BundleError(
                "signer_revoked", f"{who} was signed with {name}'s key {spoken_fingerprint(key)}, which was revoked"
            )
        if not any(run is None or entry.run in (None, run) for entry in entries):
            raise BundleError(
                "signer_unknown",
                f"{who} was signed with the key {spoken_fingerprint(key)}, which is not trusted here"
                f"{' for this run' if entries else ''}; "
                "get that site's card, compare the fingerprint by telephone, then: relay keys trust CARD",
            )
        return entries[0].card

    def find(self, name: str) -> Trusted:
        """By fingerprint, its first letters, or name. Raises BundleError `signer_unknown`."""
        wanted = name.replace(" ", "").lower()
        found = [
            e for e in self.entries if e.card.name == name or (len(wanted) >= 8 and e.card.fingerprint.startswith(wanted))
        ]
        if len({entry.card.fingerprint for entry in found}) != 1:
            known = ", ".join(entry.card.name for entry in self.entries) or "nobody"
            raise BundleError(
                "signer_unknown", f"{name!r} is {'not' if not found else 'more than once'} in the roster ({known})"
            )
        return found[0]

    def trust(self, card: Card, run: str | None = None) -> None:
        """Add a card, or trust it anew. For one run after another, it is trusted for each; for every run, that is all."""
        old = [e for e in self._all_of(card.fingerprint) if run is None or e.run in (None, run) or e.revoked_at is not None]
        self.entries = [entry for entry in self.entries if entry not in old]
        self.entries.append(Trusted(card, run, round(time.time(), 3)))

    def revoke(self, name: str) -> Trusted:
        """Trust a key no more; it stays on the list, so that it is known as revoked. Raises BundleError `signer_unknown`."""
        key, moment = self.find(name).card.fingerprint, round(time.time(), 3)
        self.entries = [replace(e, revoked_at=moment) if e.card.fingerprint == key else e for e in self.entries]
        return self._all_of(key)[0]
