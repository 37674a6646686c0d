"""Signs all files of a folder, such as a release of this software, as bundles are signed: OpenSSF Model Signing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from relay_core.bundle import signing
from relay_core.bundle.keys import KeyFolder
from relay_core.bundle.trust import Card
from relay_core.bundle.values import spoken_fingerprint
from relay_core.bundle.weights import file_digest
from relay_core.errors import BundleError
from relay_core.files import write_atomically

SIGNATURE = "signature.json"


def _digests(folder: Path) -> dict[str, str]:
    """Return path below the folder -> SHA-256 of each file but the signature. Raises BundleError for links and none."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    links = [path for path in files if path.is_symlink()]
    if links:
        raise BundleError("signature_invalid", f"{links[0]} is a symbolic link: a signature is of files")
    digests = {
        path.relative_to(folder).as_posix(): file_digest(path) for path in files if path != folder / SIGNATURE
    }  # fmt: skip
    if not digests:
        raise BundleError("bundle_incomplete", f"{folder} holds no file")
    return digests


def sign_folder(folder: Path, keys: KeyFolder) -> list[str]:
    """Write `signature.json` into a folder, over every file in it; return their names. Raises BundleError, OSError."""
    digests = _digests(folder)
    write_atomically(folder / SIGNATURE, signing.sign(folder.resolve().name, digests, None, keys))
    return sorted(digests)


def verify_folder(folder: Path, cards: Sequence[Card]) -> tuple[Card, list[str]]:
    """Verify the `signature.json` of a folder; return whose it is and the names of the files.

    Args:
        folder: the folder.
        cards: the cards of those whose signature is taken.

    Raises:
        BundleError: `signature_invalid` where there is none, a file was changed, added or is missing; `signer_unknown`.
        OSError: a file cannot be read.
    """
    path = folder / SIGNATURE
    if not path.is_file():
        raise BundleError("signature_invalid", f"{folder} has no {SIGNATURE}: nobody signed it")
    signature = signing.Signature.read(path.read_bytes())
    card = next((card for card in cards if card.fingerprint == signature.hint), None)
    if card is None:
        raise BundleError(
            "signer_unknown",
            f"{folder} was signed with the key {spoken_fingerprint(signature.hint)}, none of yours",
        )
    signed, _ = signature.verify(card.public_key)
    found = _digests(folder)
    for name in sorted(signed.keys() | found.keys()):
        if signed.get(name) != found.get(name):
            state = "was added" if name not in signed else "is missing" if name not in found else "was changed"
            raise BundleError("signature_invalid", f"{folder / name} {state} since {card.name} signed the folder")
    return card, sorted(signed)
