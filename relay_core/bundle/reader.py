"""Opens a bundle that somebody brought and checks everything in it before anything is used.

The order is: decrypt into a private folder; read the small members within their size limits; find the signer and whether
that key is trusted; compare each digest; check manifest, history and run file, then the recipient; stream the weights
through their digest; check names, shapes, types and finite values of the tensors. The private folder is deleted in the end,
whatever happened.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from relay_core.bundle import canonical, container, encryption, history, manifest, signing, weights
from relay_core.bundle.container import Progress, no_progress
from relay_core.bundle.facts import BundleFacts
from relay_core.bundle.keys import KeyFolder
from relay_core.bundle.private import private_folder
from relay_core.bundle.trust import Roster
from relay_core.config import RunFile, parse_run
from relay_core.errors import BundleError, RunFileError


@dataclass(frozen=True)
class Opened:
    """Holds the contents of a bundle whose signature, digests, history, run file and tensors have been checked."""

    manifest: manifest.Manifest
    history: list[history.Record]
    run: RunFile
    members: dict[str, bytes]
    table: weights.Table
    stored: Path
    """The file of the weights in the private folder; it is deleted when the block of `opened` ends."""
    facts: BundleFacts


@contextlib.contextmanager
def opened(
    path: Path, keys: KeyFolder, work: Path, *, trust: bool = True, progress: Progress = no_progress
) -> Iterator[Opened]:
    """Check a bundle and yield its contents; its weights can be used within the block.

    Args:
        path: the bundle file.
        keys: this site's keys and roster, for decryption and trust.
        work: the folder in which a private one is made; it needs room for the weights, twice if the bundle is encrypted.
        trust: whether every signer must be trusted here; False is for inspection only, and the contents are then not to be
            relied on.
        progress: called with the bytes of the weights that have been read, and in all.

    Raises:
        BundleError: the bundle is refused; the code says why.
        OSError: the bundle is not readable, or the disk is full.
    """
    with private_folder(work) as private:
        plain = path
        if encryption.is_encrypted(path):
            plain = private / "plain.relay"
            encryption.decrypt(path, plain, keys)
        yield _check_bundle(plain, path, keys, private, trust, progress)


def _check_bundle(plain: Path, path: Path, keys: KeyFolder, private: Path, trust: bool, progress: Progress) -> Opened:
    roster = keys.roster
    members: dict[str, bytes] = {}
    digests: dict[str, str] = {}
    stored = private / container.WEIGHTS
    with plain.open("rb") as file:
        for name, size, content in container.read(file):
            if name != container.WEIGHTS:
                members[name] = b"".join(content)
                continue
            signed, recipient, manifest_data, table, records, run = _check_small_members(members, roster if trust else None)
            _require_recipient(manifest_data, recipient, keys, plain is not path)
            if size != weights.length(table):
                raise BundleError("weights_invalid", "the weights have another size than the manifest's tensors")
            digests = {n: canonical.sha256(data) for n, data in members.items() if n != "signature.json"}
            _require_signed(digests, {n: digest for n, digest in signed.items() if n != name})
            digests[name] = _store_weights(content, stored, size, progress)
            _require_signed(digests, signed)
    if plain is not path:
        plain.unlink()  # everything needed has been copied out of it
    if records[-1]["weights"] != digests[container.WEIGHTS]:
        raise BundleError("history_broken", "the last hop of the history belongs to other weights")
    weights.check(stored, table)
    facts = BundleFacts.of(manifest_data, records, signing.root_digest(digests), roster, path)
    return Opened(manifest_data, records, run, members, table, stored, facts)


def _check_small_members(
    members: dict[str, bytes], roster: Roster | None
) -> tuple[dict[str, str], str | None, manifest.Manifest, weights.Table, list[history.Record], RunFile]:
    """Check every member but the weights: the signer first, then the signed digests, then the contents.

    Args:
        members: member's name -> content.
        roster: the keys that this site trusts; None accepts the key that the last record of the history names.

    Returns:
        The signed digests by member, the signed recipient, the manifest, its tensors, the history and the run file.
    """
    signature = signing.Signature.read(members["signature.json"])
    if roster is not None:  # before any other member is parsed; trust for this run is checked below, once the run is known
        card = roster.require(signature.hint, None, "the bundle")
        signed, recipient = signature.verify(card.public_key)
        _require_signed({n: canonical.sha256(d) for n, d in members.items() if n != "signature.json"},
                        {n: d for n, d in signed.items() if n != container.WEIGHTS})  # fmt: skip
    manifest_data, table = manifest.check(members["manifest.json"])
    records = history.check(canonical.load(members["history.json"], "history.json"), roster)
    if roster is None:
        signed, recipient = signature.verify(records[-1]["signer"]["public_key"])
    else:
        roster.require(signature.hint, manifest_data["run"], "the bundle")
    last = records[-1]
    expected = {**manifest_data, **{key: manifest_data["checkpoint"][key] for key in ("images", "steps")}}
    for key in ("hop", "task_id", "site", "run", "parent", "metrics", "relay", "created_at", "images", "steps"):
        if last[key] != expected[key]:
            raise BundleError("history_broken", f"the last hop of the history has another {key} than the manifest")
    if not signature.hint == manifest_data["signer"]["fingerprint"] == last["signer"]["fingerprint"]:
        raise BundleError("signature_invalid", "the bundle was signed by another site than the one that its last hop names")
    try:
        run = parse_run(members["run.yaml"].decode())
        if run.digest != manifest_data["run"]:
            raise BundleError("bundle_other_run", "the run file in the bundle is not the one that its manifest names")
        manifest.require_fit(manifest_data, records, run)
    except (RunFileError, UnicodeDecodeError) as error:
        raise BundleError("bundle_damaged", f"the run file in the bundle is not valid: {error}") from None
    if not _is_text(members["MODEL_CARD.md"]):
        raise BundleError("bundle_damaged", "MODEL_CARD.md is not plain text")
    return signed, recipient, manifest_data, table, records, run


def _is_text(data: bytes) -> bool:
    """Return whether data is UTF-8 without control characters, which a terminal could take for a command."""
    try:
        return all(line.isprintable() for line in data.decode().split("\n"))
    except UnicodeDecodeError:
        return False


def _require_signed(actual: dict[str, str], signed: dict[str, str]) -> None:
    """Require that members and digests are exactly the signed ones. Raises BundleError `signature_invalid`."""
    if actual != signed:
        names = sorted(n for n in actual.keys() | signed.keys() if actual.get(n) != signed.get(n))
        raise BundleError("signature_invalid", f"not what was signed: {', '.join(repr(name[:100]) for name in names[:6])}")


def _require_recipient(manifest_data: manifest.Manifest, recipient: str | None, keys: KeyFolder, encrypted: bool) -> None:
    """Require that the bundle was made for this site or for anyone, and was not encrypted by somebody else on the way.

    Raises:
        BundleError: `signature_invalid`, `wrong_recipient`.
    """
    if recipient != manifest_data["recipient"]:
        raise BundleError("signature_invalid", "the manifest names another recipient than the signed statement")
    if recipient is None:
        if encrypted:
            raise BundleError("wrong_recipient", "it was made for no one site, and then encrypted by somebody else")
        return
    if not encrypted:
        raise BundleError("wrong_recipient", "it was made for one site's eyes, and is not encrypted: ask for it again")
    if not keys.exists or recipient != keys.card.fingerprint:
        raise BundleError("wrong_recipient", "it was made for another site, and re-encrypted for this one")


def _store_weights(content: Iterator[bytes], target: Path, size: int, progress: Progress) -> str:
    digest, done = hashlib.sha256(), 0
    with target.open("xb") as out:
        for chunk in content:
            digest.update(chunk)
            out.write(chunk)
            done += len(chunk)
            progress(done, size)
    return digest.hexdigest()
