"""Defines whom a site trusts: the cards that sites give to each other, and the roster of the cards that a site trusts."""

from __future__ import annotations

import base64
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from relay_core.bundle import canonical
from relay_core.bundle.values import day, is_name, spoken_fingerprint
from relay_core.errors import BundleError
from relay_core.files import write_atomically
from relay_core.texts import site_name

HASH = ec.ECDSA(hashes.SHA256())
"""The signature algorithm of all signatures here, with keys on the curve P-256."""


def fingerprint(public_key: str) -> str:
    """Return the SHA-256 of a public key's PEM text in hexadecimal, which is also the key hint of OpenSSF Model Signing."""
    return canonical.sha256(public_key.encode())


def verify(public_key: str, message: bytes, signature: bytes) -> bool:
    """Return whether an ECDSA P-256 SHA-256 signature is valid; False also where `public_key` is not a P-256 key in PEM."""
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
    """Holds what a site gives to the others: its name and its two public keys."""

    name: str
    public_key: str
    """The PEM text of the public key that verifies the site's signatures (ECDSA P-256)."""
    age: str
    """The X25519 recipient (`age1...`) that bundles for the site are encrypted to."""
    proof: str = ""
    """The base64 signature by that key over name, key and recipient; it shows that nobody swapped the recipient."""

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the public key."""
        return fingerprint(self.public_key)

    def message(self) -> bytes:
        """Return the bytes that `proof` signs."""
        return canonical.dump({"relay card": 1, "name": self.name, "public_key": self.public_key, "age": self.age})

    def to_json(self) -> bytes:
        """Return the content of the site's `card.json`."""
        return canonical.dump({"format": 1, **asdict(self)})

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Card:
        """Read a card and verify its proof.

        Args:
            data: the content of a `card.json`.
            where: the name of the source, for the error message.

        Raises:
            BundleError: `bundle_damaged` where it is no card; `signature_invalid` where the proof does not fit.
        """
        import pyrage

        try:
            fields = dict(canonical.load(data.strip(), where))
            if fields.pop("format") != 1 or not all(isinstance(value, str) for value in fields.values()):
                raise ValueError
            card = cls(**fields)
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
    """Holds an entry of the roster: a card, and what it is trusted for."""

    card: Card
    run: str | None = None
    """The digest of the run that the trust is limited to; None: every run."""
    added_at: float = 0.0
    """The time of the entry, in Unix seconds."""
    revoked_at: float | None = None
    """The time at which the trust was withdrawn, in Unix seconds; None: it was not."""


class Roster:
    """Holds the keys that a site trusts, and those that it trusts no more."""

    def __init__(self, entries: list[Trusted]) -> None:
        self.entries = entries

    @classmethod
    def read(cls, path: Path) -> Roster:
        """Read a roster; a file that does not exist gives an empty one. Raises BundleError `bundle_damaged`."""
        if not path.is_file():
            return cls([])
        try:
            content = canonical.load(path.read_bytes().strip(), path.name)
            return cls([
                Trusted(Card(**entry["card"]), entry["run"], entry["added_at"], entry["revoked_at"])
                for entry in content["entries"]
            ])  # fmt: skip
        except (TypeError, KeyError):
            raise BundleError("bundle_damaged", f"{path} is not a roster") from None

    def write(self, path: Path) -> None:
        """Write the roster to a file, atomically. Raises OSError."""
        write_atomically(path, canonical.dump({"format": 1, "entries": [asdict(entry) for entry in self.entries]}))

    def of(self, key: str) -> Trusted | None:
        """Return the first entry of a key, given its fingerprint; None where it has none."""
        return next(iter(self._entries_of(key)), None)

    def _entries_of(self, key: str) -> list[Trusted]:
        """Return all entries of a key: one if it is trusted for every run, else one per run that it is trusted for."""
        return [entry for entry in self.entries if entry.card.fingerprint == key]

    def require(self, key: str, run: str | None, who: str) -> Card:
        """Return the card of a trusted signer.

        Args:
            key: the fingerprint of the signer's key.
            run: the digest of the run that the signed thing belongs to; None while that is not known.
            who: the name of the signed thing, for the error message.

        Raises:
            BundleError: `signer_unknown` where the key is not trusted for the run, `signer_revoked` where it was revoked.
        """
        entries = self._entries_of(key)
        revoked = next((entry for entry in entries if entry.revoked_at is not None), None)
        if revoked is not None:
            raise BundleError(
                "signer_revoked",
                f"{who} was signed with {revoked.card.name}'s key {spoken_fingerprint(key)}, which was revoked here on "
                f"{day(revoked.revoked_at or 0)}: do not use it; where the key may be trusted again: relay keys trust CARD",
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
        """Find the one entry with a name, a fingerprint, or at least eight first digits of one.

        Raises:
            BundleError: `signer_unknown` where no key fits, or several do.
        """
        prefix = name.replace(" ", "").lower()
        matches = [
            e for e in self.entries if e.card.name == name or (len(prefix) >= 8 and e.card.fingerprint.startswith(prefix))
        ]
        if len({entry.card.fingerprint for entry in matches}) != 1:
            names = ", ".join(entry.card.name for entry in self.entries) or "nobody"
            raise BundleError(
                "signer_unknown", f"{name!r} is {'not' if not matches else 'more than once'} in the roster ({names})"
            )
        return matches[0]

    def trust(self, card: Card, run: str | None = None, where: str = "the card") -> None:
        """Trust a card, also one that was revoked before.

        Trust for a single run is added to that for other runs; it replaces an entry for the same run, one for every run, and
        revoked ones. Trust for every run (`run` is None) replaces all entries of the key.

        Args:
            card: the card.
            run: digest of the run that it is trusted for; None: every one.
            where: the name of its source, for the error message.

        Raises:
            BundleError: `bundle_damaged` where the card's name is none that a site may have.
        """
        try:
            site_name(card.name)
        except ValueError as error:
            raise BundleError("bundle_damaged", f"{where}: {error}; ask the site for a card with another name") from None
        replaced = [
            e for e in self._entries_of(card.fingerprint) if run is None or e.run in (None, run) or e.revoked_at is not None
        ]
        self.entries = [entry for entry in self.entries if entry not in replaced]
        self.entries.append(Trusted(card, run, round(time.time(), 3)))

    def revoke(self, name: str) -> Trusted:
        """Revoke a key and return its first entry; it stays in the roster, so that it is known as revoked.

        Raises:
            BundleError: `signer_unknown` where `find` does not find the key.
        """
        key, moment = self.find(name).card.fingerprint, round(time.time(), 3)
        self.entries = [replace(e, revoked_at=moment) if e.card.fingerprint == key else e for e in self.entries]
        return self._entries_of(key)[0]
