"""Keeps a site's keys as files in one folder, which never leaves the site.

`signing.pem` (ECDSA P-256) and `age.key` (X25519) are encrypted with the site's passphrase, mode 600. `card.json` is the
public half: a site gives it to the others, who check its fingerprint by telephone. `roster.json` lists the cards that
this site trusts.
"""

from __future__ import annotations

import base64
import getpass
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from relay_core.files import alone, write_atomically

_PEM = serialization.Encoding.PEM


def _seal(secret: bytes, passphrase: str) -> bytes:
    """Encrypt a secret with ChaCha20-Poly1305, under a key that scrypt derives from the passphrase; return canonical JSON.

    scrypt takes 32 MiB of memory here; age's own encryption by passphrase would take 512 MiB.
    """
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    data = ChaCha20Poly1305(_derived_key(passphrase, salt)).encrypt(nonce, secret, None)
    parts = {"salt": salt, "nonce": nonce, "data": data}
    return canonical.dump({"format": 1, **{name: base64.b64encode(value).decode() for name, value in parts.items()}})


def _unseal(sealed: bytes, passphrase: str) -> bytes:
    """Decrypt what `_seal` returned. Raises BundleError `key_locked` where the passphrase is wrong or the data damaged."""
    try:
        fields = canonical.load(sealed, "age.key")
        salt, nonce, data = (base64.b64decode(fields[name], validate=True) for name in ("salt", "nonce", "data"))
        return ChaCha20Poly1305(_derived_key(passphrase, salt)).decrypt(nonce, data, None)
    except (BundleError, InvalidTag, ValueError, KeyError, TypeError):
        raise BundleError("key_locked", "the passphrase does not open the site's decryption key") from None


def _derived_key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=1 << 15, r=8, p=1).derive(passphrase.encode())


class KeyFolder:
    """Gives access to the folder with a site's keys, card and roster.

    Args:
        folder: the folder of the keys.
        ask: asks a person for the passphrase, given a prompt, where neither environment nor file gives it; None: it is asked
            for at the terminal, if there is one.
    """

    def __init__(self, folder: Path, ask: Callable[[str], str] | None = None) -> None:
        self.folder, self.ask = folder, ask
        self._identity: Any = None  # kept, because scrypt makes decrypting it slow on purpose

    @property
    def roster(self) -> Roster:
        """Read the roster of the keys that the site trusts, its own included. Raises BundleError as `Roster.read`."""
        roster = Roster.read(self.folder / "roster.json")
        if self.exists and roster.of(self.card.fingerprint) is None:
            roster.entries.append(Trusted(self.card))
        return roster

    def save(self, roster: Roster) -> None:
        """Write the roster."""
        roster.write(self.folder / "roster.json")

    @contextmanager
    def changing(self) -> Iterator[Roster]:
        """Yield the roster for a change and save it afterwards; two people at once do not undo each other's changes."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with alone(self.folder):
            roster = self.roster
            yield roster
            self.save(roster)

    @property
    def exists(self) -> bool:
        """Return whether the site has keys: whether the folder holds a `card.json`."""
        return (self.folder / "card.json").is_file()

    @property
    def card(self) -> Card:
        """Read the site's own card. Raises BundleError `key_missing`, and as `Card.from_json`."""
        if not self.exists:
            raise BundleError("key_missing", "this site has no key yet: relay keys create --name NAME")
        return Card.from_json((self.folder / "card.json").read_bytes(), "card.json")

    def create(self, name: str, passphrase: str) -> Card:
        """Create both keys and the card, and return the card.

        Args:
            name: the site's name.
            passphrase: the passphrase that both private keys are encrypted with.

        Raises:
            BundleError: `key_missing` where the folder has keys already, because they are never overwritten.
        """
        import pyrage

        if self.exists or (self.folder / "signing.pem").exists():
            raise BundleError("key_missing", f"{self.folder} holds a key already; choose another folder")
        key = ec.generate_private_key(ec.SECP256R1())
        public = key.public_key().public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
        identity = pyrage.x25519.Identity.generate()
        unproven = Card(name, public, str(identity.to_public()))
        card = replace(unproven, proof=base64.b64encode(key.sign(unproven.message(), HASH)).decode())
        pem_encryption = serialization.BestAvailableEncryption(passphrase.encode())
        private = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, pem_encryption)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self.folder / "age.key", _seal(str(identity).encode(), passphrase), 0o600)
        write_atomically(self.folder / "signing.pem", private, 0o600)
        write_atomically(self.folder / "card.json", card.to_json())
        return card

    def sign(self, *messages: bytes) -> list[bytes]:
        """Sign each message with ECDSA P-256 and SHA-256; return the signatures in DER.

        Raises:
            BundleError: `key_missing` where the site has no key, `key_locked` where the passphrase does not open it.
        """
        path = self.folder / "signing.pem"
        if not path.is_file():
            raise BundleError("key_missing", "this site has no key yet: relay keys create --name NAME")
        try:
            key: Any = serialization.load_pem_private_key(path.read_bytes(), self.passphrase().encode())
        except (ValueError, TypeError):
            raise BundleError("key_locked", "the passphrase does not open the site's signing key") from None
        return [key.sign(message, HASH) for message in messages]

    def identity(self) -> Any:
        """Return the age identity (X25519 private key) that decrypts bundles for this site.

        Raises:
            BundleError: `key_missing` where the site has no key, `key_locked` where the passphrase does not open it.
        """
        import pyrage

        path = self.folder / "age.key"
        if not path.is_file():
            raise BundleError("key_missing", "the bundle is encrypted, and this site has no key yet: relay keys create")
        if self._identity is None:
            self._identity = pyrage.x25519.Identity.from_str(_unseal(path.read_bytes(), self.passphrase()).decode())
        return self._identity

    def passphrase(self) -> str:
        """Return the passphrase.

        The sources, in this order, are the file that RELAY_KEY_PASSPHRASE_FILE names, RELAY_KEY_PASSPHRASE, the file
        `passphrase` in the folder, and a person.

        Raises:
            BundleError: `key_locked` where the file cannot be read, or nobody can be asked.
        """
        path = os.environ.get("RELAY_KEY_PASSPHRASE_FILE")
        own_file = self.folder / "passphrase"
        try:
            if path:
                return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
            if "RELAY_KEY_PASSPHRASE" in os.environ:
                return os.environ["RELAY_KEY_PASSPHRASE"]
            if own_file.is_file():
                return own_file.read_text(encoding="utf-8").rstrip("\r\n")
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
        """Create a random passphrase, write it beside the keys with mode 600, and return it.

        This is for a machine where access to the disk is the only protection of the keys.
        """
        generated = secrets.token_urlsafe(24)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self.folder / "passphrase", generated.encode(), 0o600)
        return generated
