"""From a file that somebody brought to weights that may be used: nothing is believed before it has been checked.

Order: decrypt into a private folder; the small members within their caps; whose signature it is and whether that key is
trusted; each digest; manifest, history and recipient; the run file; then the weights, streamed through their digest;
names, shapes, types and finite values of the tensors. The private folder is gone in the end, whatever happened.
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
    """A bundle whose signature, digests, history, run file and tensors have been checked."""

    manifest: manifest.Manifest
    history: list[history.Record]
    run: RunFile
    members: dict[str, bytes]
    table: weights.Table
    stored: Path
    """The weights, in the private folder: gone when the block ends."""
    facts: BundleFacts


@contextlib.contextmanager
def opened(
    path: Path, keys: KeyFolder, work: Path, *, trust: bool = True, progress: Progress = no_progress
) -> Iterator[Opened]:
    """Check a bundle; its weights can be used within the block.

    Args:
        path: the file.
        keys: of this site: whom it trusts, and how it decrypts.
        work: folder that a private one is made in: the weights need room there, twice when the bundle is encrypted.
        trust: whether every signer must be trusted here; False only looks (what it says is then not believed).
        progress: told bytes done and in all.

    Raises:
        BundleError: why it is refused.
        OSError: not readable, or the disk is full.
    """
    with private_folder(work) as private:
        plain = path
        if encryption.is_encrypted(path):
            plain = private / "plain.relay"
            encryption.decrypt(path, plain, keys)
        yield _checked(plain, path, keys, private, trust, progress)


def _checked(plain: Path, path: Path, keys: KeyFolder, private: Path, trust: bool, progress: Progress) -> Opened:
    roster = keys.roster
    members: dict[str, bytes] = {}
    digests: dict[str, str] = {}
    stored = private / container.WEIGHTS
    with plain.open("rb") as file:
        for name, size, content in container.read(file):
            if name != container.WEIGHTS:
                members[name] = b"".join(content)
                continue
            signed, recipient, made, table, records, run = _small(members, roster if trust else None)
            _for_us(made, recipient, keys, plain is not path)
            if size != weights.length(table):
                raise BundleError("weights_invalid", "the weights have another size than the manifest's tensors")
            digests = {n: canonical.sha256(data) for n, data in members.items() if n != "signature.json"}
            _compare(digests, {n: digest for n, digest in signed.items() if n != name})
            digests[name] = _receive(content, stored, size, progress)
            _compare(digests, signed)
    if plain is not path:
        plain.unlink()  # all that is needed has been copied out of it
    if records[-1]["weights"] != digests[container.WEIGHTS]:
        raise BundleError("history_broken", "the last hop of the history belongs to other weights")
    weights.check(stored, table)
    facts = BundleFacts.of(made, records, signing.root_digest(digests), roster, path)
    return Opened(made, records, run, members, table, stored, facts)


def _small(
    members: dict[str, bytes], roster: Roster | None
) -> tuple[dict[str, str], str | None, manifest.Manifest, weights.Table, list[history.Record], RunFile]:
    """Everything but the weights: the signer first, what he signed, then what it says."""
    signature = signing.Signature.read(members["signature.json"])
    if roster is not None:  # before a word of the rest is read; whether for this run, when the run is known
        card = roster.require(signature.hint, None, "the bundle")
        signed, recipient = signature.verify(card.public_key)
        _compare({n: canonical.sha256(d) for n, d in members.items() if n != "signature.json"},
                 {n: d for n, d in signed.items() if n != container.WEIGHTS})  # fmt: skip
    made, table = manifest.check(members["manifest.json"])
    records = history.check(canonical.load(members["history.json"], "history.json"), roster)
    if roster is None:
        signed, recipient = signature.verify(records[-1]["signer"]["public_key"])
    else:
        roster.require(signature.hint, made["run"], "the bundle")
    last = records[-1]
    told = {**made, **{key: made["checkpoint"][key] for key in ("images", "steps")}}
    for key in ("hop", "task_id", "site", "run", "parent", "metrics", "relay", "created_at", "images", "steps"):
        if last[key] != told[key]:
            raise BundleError("history_broken", f"the last hop of the history has another {key} than the manifest")
    if not signature.hint == made["signer"]["fingerprint"] == last["signer"]["fingerprint"]:
        raise BundleError("signature_invalid", "the bundle was signed by another site than the one that its last hop names")
    try:
        run = parse_run(members["run.yaml"].decode())
        if run.digest != made["run"]:
            raise BundleError("bundle_other_run", "the run file in the bundle is not the one that its manifest names")
        manifest.require_fit(made, records, run)
    except (RunFileError, UnicodeDecodeError) as error:
        raise BundleError("bundle_damaged", f"the run file in the bundle is not valid: {error}") from None
    if not _is_text(members["MODEL_CARD.md"]):
        raise BundleError("bundle_damaged", "MODEL_CARD.md is not plain text")
    return signed, recipient, made, table, records, run


def _is_text(data: bytes) -> bool:
    """Lines that no terminal takes for a command."""
    try:
        return all(line.isprintable() for line in data.decode().split("\n"))
    except UnicodeDecodeError:
        return False


def _compare(found: dict[str, str], signed: dict[str, str]) -> None:
    """Exactly the signed files, unchanged."""
    if found != signed:
        names = sorted(n for n in found.keys() | signed.keys() if found.get(n) != signed.get(n))
        raise BundleError("signature_invalid", f"not what was signed: {', '.join(repr(name[:100]) for name in names[:6])}")


def _for_us(made: manifest.Manifest, recipient: str | None, keys: KeyFolder, encrypted: bool) -> None:
    """Whether it was made for this site, or for anyone; and was not sealed by somebody else on the way."""
    if recipient != made["recipient"]:
        raise BundleError("signature_invalid", "the manifest names another recipient than the signed statement")
    if recipient is None:
        if encrypted:
            raise BundleError("wrong_recipient", "it was made for no one site, and then encrypted by somebody else")
        return
    if not encrypted:
        raise BundleError("wrong_recipient", "it was made for one site's eyes, and is not encrypted: ask for it again")
    if not keys.exists or recipient != keys.card.fingerprint:
        raise BundleError("wrong_recipient", "it was made for another site, and re-encrypted for this one")


def _receive(content: Iterator[bytes], target: Path, size: int, progress: Progress) -> str:
    digest, done = hashlib.sha256(), 0
    with target.open("xb") as out:
        for chunk in content:
            digest.update(chunk)
            out.write(chunk)
            done += len(chunk)
            progress(done, size)
    return digest.hexdigest()
