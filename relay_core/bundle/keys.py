"""A site's keys and whom it trusts: files in one folder, which never leaves the site.

`signing.pem` (ECDSA P-256) and `age.key` (X25519) are encrypted with the site's passphrase, mode 600. `card.json` is the
public half: a site gives it to the others, who check its fingerprint by telephone. `roster.json` is whom this site
trusts.
"""

from __future__ import annotations

import base64
import getpass
import os
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from relay_core.bundle import canonical
from relay_core.bundle.values import is_name
from relay_core.errors import BundleError
from relay_core.files import write_atomically

_PEM = serialization.Encoding.PEM
_HASH = ec.ECDSA(hashes.SHA256())


def fingerprint(public_key: str) -> str:
    """SHA-256 of a public key's PEM text, hexadecimal: the key hint of OpenSSF Model Signing."""
    return canonical.sha256(public_key.encode())


def spoken(value: str) -> str:
    """The first 128 bits of a fingerprint in groups to read aloud."""
    return " ".join(value[i : i + 4] for i in range(0, 32, 4))


def verify(public_key: str, message: bytes, signature: bytes) -> bool:
    """Whether an ECDSA P-256 SHA-256 signature is right; False too for a key that is none."""
    try:
        key = serialization.load_pem_public_key(public_key.encode())
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            return False
        key.verify(signature, message, _HASH)
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
            raise BundleError("signer_revoked", f"{who} was signed with {name}'s key {spoken(key)}, which was revoked")
        if not any(run is None or entry.run in (None, run) for entry in entries):
            raise BundleError(
                "signer_unknown",
                f"{who} was signed with the key {spoken(key)}, which is not trusted here"
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


class KeyFolder:
    """The folder with a site's keys.

    Args:
        folder: where.
        ask: asks a person for the passphrase where no setting gives it; None: at the terminal, if there is one.
    """

    def __init__(self, folder: Path, ask: Callable[[str], str] | None = None) -> None:
        self.folder, self.ask = folder, ask
        self._identity: Any = None  # opening it takes a second, on purpose

    @property
    def roster(self) -> Roster:
        """Whom the site trusts, itself included."""
        roster = Roster.read(self.folder / "roster.json")
        if self.exists and roster.of(self.card.fingerprint) is None:
            roster.entries.append(Trusted(self.card))
        return roster

    def save(self, roster: Roster) -> None:
        """Write the roster."""
        roster.write(self.folder / "roster.json")

    @property
    def exists(self) -> bool:
        """Whether there is a key."""
        return (self.folder / "card.json").is_file()

    @property
    def card(self) -> Card:
        """The site's own card. Raises BundleError `key_missing`."""
        if not self.exists:
            raise BundleError("key_missing", "this site has no key yet: relay keys create --name NAME")
        return Card.from_json((self.folder / "card.json").read_bytes(), "card.json")

    def create(self, name: str, passphrase: str) -> Card:
        """Make both keys and the card.

        Raises:
            BundleError: `key_missing` where the folder has keys already: they are never overwritten.
        """
        import pyrage

        if self.exists or (self.folder / "signing.pem").exists():
            raise BundleError("key_missing", f"{self.folder} holds a key already; choose another folder")
        key = ec.generate_private_key(ec.SECP256R1())
        public = key.public_key().public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
        identity = pyrage.x25519.Identity.generate()
        bare = Card(name, public, str(identity.to_public()))
        card = replace(bare, proof=base64.b64encode(key.sign(bare.message(), _HASH)).decode())
        sealed = serialization.BestAvailableEncryption(passphrase.encode())
        private = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, sealed)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self.folder / "age.key", pyrage.passphrase.encrypt(str(identity).encode(), passphrase), 0o600)
        write_atomically(self.folder / "signing.pem", private, 0o600)
        write_atomically(self.folder / "card.json", card.to_json())
        return card

    def sign(self, *messages: bytes) -> list[bytes]:
        """ECDSA P-256 signatures. Raises BundleError `key_missing`, `key_locked`."""
        path = self.folder / "signing.pem"
        if not path.is_file():
            raise BundleError("key_missing", "this site has no key yet: relay keys create --name NAME")
        try:
            key: Any = serialization.load_pem_private_key(path.read_bytes(), self.passphrase().encode())
        except (ValueError, TypeError):
            raise BundleError("key_locked", "the passphrase does not open the site's signing key") from None
        return [key.sign(message, _HASH) for message in messages]

    def identity(self) -> Any:
        """The age identity. Raises BundleError `key_missing`, `key_locked`."""
        import pyrage

        path = self.folder / "age.key"
        if not path.is_file():
            raise BundleError("key_missing", "the bundle is encrypted, and this site has no key yet: relay keys create")
        if self._identity is None:
            try:
                text = pyrage.passphrase.decrypt(path.read_bytes(), self.passphrase()).decode()
            except pyrage.DecryptError:
                raise BundleError("key_locked", "the passphrase does not open the site's decryption key") from None
            self._identity = pyrage.x25519.Identity.from_str(text)
        return self._identity

    def passphrase(self) -> str:
        """From RELAY_KEY_PASSPHRASE_FILE, RELAY_KEY_PASSPHRASE, the folder's file `passphrase`, or a person.

        Raises:
            BundleError: `key_locked`.
        """
        path = os.environ.get("RELAY_KEY_PASSPHRASE_FILE")
        beside = self.folder / "passphrase"
        try:
            if path:
                return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
            if "RELAY_KEY_PASSPHRASE" in os.environ:
                return os.environ["RELAY_KEY_PASSPHRASE"]
            if beside.is_file():
                return beside.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError("key_locked", f"the passphrase's file cannot be read: {error}") from None
        if self.ask is not None:
            return self.ask("passphrase of this site's key: ")
        if sys.stdin.isatty():
            return getpass.getpass("passphrase of this site's key: ")
        raise BundleError(
            "key_locked", "set RELAY_KEY_PASSPHRASE_FILE to a file that holds the passphrase of the site's key"
        )

    def keep_passphrase(self) -> str:
        """Make up a passphrase and leave it beside the keys, mode 600: for a machine whose disk is the protection."""
        made = secrets.token_urlsafe(24)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self.folder / "passphrase", made.encode(), 0o600)
        return made
