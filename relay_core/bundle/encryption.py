"""Encrypts bundles for one recipient, and decrypts them, with age (https://age-encryption.org/v1) through pyrage."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from relay_core.bundle import container
from relay_core.bundle.keys import KeyFolder
from relay_core.errors import BundleError

MAGIC = b"age-encryption.org/v1"


def is_encrypted(path: Path) -> bool:
    """Return whether a file begins with the header of the age format."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def encrypt(source: Path, out: BinaryIO, recipient: str) -> None:
    """Encrypt a file for `recipient` (`age1...`). Raises OSError."""
    import pyrage

    with source.open("rb") as file:
        pyrage.encrypt_io(file, out, [pyrage.x25519.Recipient.from_str(recipient)])


def decrypt(source: Path, target: Path, keys: KeyFolder) -> None:
    """Decrypt a file to a new one with mode 600; after any failure the new file is deleted, so that no plaintext stays.

    Raises:
        BundleError: `wrong_recipient` where the file is encrypted for another key; `bundle_damaged`, `bundle_too_large`;
            and as `KeyFolder.identity`.
    """
    import pyrage

    if source.stat().st_size > container.LARGEST + container.LARGEST // 1000:  # age adds 16 bytes per 64 KiB
        raise BundleError("bundle_too_large", f"no bundle has more than {container.LARGEST} bytes")
    identity = keys.identity()
    target.touch(0o600, exist_ok=False)
    try:
        with source.open("rb") as file, target.open("wb") as out:
            pyrage.decrypt_io(file, out, [identity])
    except BaseException as error:
        target.unlink(missing_ok=True)  # age has already written the plaintext before the damaged place
        if isinstance(error, pyrage.DecryptError) and "No matching keys" in str(error):
            raise BundleError(
                "wrong_recipient", "the bundle is encrypted for another site; ask for one for this site"
            ) from None
        if isinstance(error, pyrage.DecryptError) or (isinstance(error, OSError) and error.errno is None):
            raise BundleError(
                "bundle_damaged", "the bundle cannot be decrypted: it was damaged or is not complete"
            ) from None
        raise
