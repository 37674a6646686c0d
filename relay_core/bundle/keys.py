"""A site's keys: files in one folder, which never leaves the site.

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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from relay_core.bundle import canonical
from relay_core.bundle.trust import HASH, Card, Roster, Trusted
from relay_core.errors import BundleError
from relay_core.files import write_atomically

_PEM = serialization.Encoding.PEM


def _sealed(secret: bytes, passphrase: str) -> bytes:
    """Encrypt with ChaCha20-Poly1305 under scrypt of a passphrase: 32 MiB, age's own form takes 512."""
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    data = ChaCha20Poly1305(_stretched(passphrase, salt)).encrypt(nonce, secret, None)
    parts = {"salt": salt, "nonce": nonce, "data": data}
    return canonical.dump({"format": 1, **{name: base64.b64encode(value).decode() for name, value in parts.items()}})


def _unsealed(sealed: bytes, passphrase: str) -> bytes:
    """The inverse. Raises BundleError `key_locked`."""
    try:
        found = canonical.load(sealed, "age.key")
        salt, nonce, data = (base64.b64decode(found[name], validate=True) for name in ("salt", "nonce", "data"))
        return ChaCha20Poly1305(_stretched(passphrase, salt)).decrypt(nonce, data, None)
    except (BundleError, InvalidTag, ValueError, KeyError, TypeError):
        raise BundleError("key_locked", "the passphrase does not open the site's decryption key") from None


def _stretched(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=1 << 15, r=8, p=1).derive(passphrase.encode())


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
        card = replace(bare, proof=base64.b64encode(key.sign(bare.message(), HASH)).decode())
        sealed = serialization.BestAvailableEncryption(passphrase.encode())
        private = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, sealed)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self.folder / "age.key", _sealed(str(identity).encode(), passphrase), 0o600)
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
        return [key.sign(message, HASH) for message in messages]

    def identity(self) -> Any:
        """The age identity. Raises BundleError `key_missing`, `key_locked`."""
        import pyrage

        path = self.folder / "age.key"
        if not path.is_file():
            raise BundleError("key_missing", "the bundle is encrypted, and this site has no key yet: relay keys create")
        if self._identity is None:
            self._identity = pyrage.x25519.Identity.from_str(_unsealed(path.read_bytes(), self.passphrase()).decode())
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
