"""Signs a site's evaluation for the coordinator, and reads it there: metrics only, in a DSSE envelope."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import relay_core
from relay_core.bundle import canonical, manifest, signing, weights
from relay_core.bundle.keys import KeyFolder
from relay_core.bundle.manifest import Scores
from relay_core.bundle.values import are_metrics, is_count, is_digest, is_moment, is_name
from relay_core.config import RunFile
from relay_core.errors import BundleError
from relay_core.files import write_atomically

PAYLOAD = "application/vnd.relay.report+json"
MAX_SIZE = 16 << 20
_FIELDS = frozenset({"format", "relay", "run", "task_id", "site", "checkpoint", "bundle", "scores", "created_at", "by"})


@dataclass(frozen=True)
class SignedReport:
    """Holds the scores of one checkpoint on one site's test sets, as that site signed them."""

    run: str
    """The digest of the run that the checkpoint belongs to."""
    task_id: int
    """The number of the site that trained the checkpoint."""
    site: str
    """The name of the site that trained the checkpoint."""
    bundle: str | None
    """The digest of the bundle that the checkpoint came in; None: it was trained where it was scored."""
    scores: Scores
    """Test set -> metric -> mean."""
    created_at: float
    """The time of the report, in Unix seconds."""
    by: str
    """The name of the site that signed the report."""


def sign_report(scores: Path, checkpoint: Path, run: RunFile, keys: KeyFolder, target: Path) -> SignedReport:
    """Write a signed report of a `scores.json`, and return it.

    Args:
        scores: the `scores.json` of an evaluation.
        checkpoint: the checkpoint that was evaluated.
        run: the relay's run file.
        keys: the keys of this site.
        target: the file to write.

    Raises:
        BundleError: `bundle_other_run`, `bundle_incomplete`, `key_missing`, `key_locked`.
        CheckpointError: the checkpoint is damaged.
    """
    source = weights.read_checkpoint(checkpoint)
    meta = source.meta
    if meta["run"] != run.digest:
        raise BundleError("bundle_other_run", "the checkpoint was trained with another run file than the one given")
    payload = {
        "format": 1,
        "relay": relay_core.__version__,
        "run": meta["run"],
        "task_id": meta["task_id"],
        "site": meta["site"],
        "checkpoint": {"step": meta["step"], "images": meta["images"]},
        "bundle": meta.get("bundle"),
        "scores": manifest.scores_of(scores, source.digest),
        "created_at": round(time.time(), 3),
        "by": {"name": keys.card.name, "fingerprint": keys.card.fingerprint},
    }
    write_atomically(target, canonical.dump(signing.envelope(canonical.dump(payload), PAYLOAD, keys)))
    return _report(payload)


def read_report(path: Path, keys: KeyFolder) -> SignedReport:
    """Read a report, verify its signature and require that its signer is trusted here.

    Raises:
        BundleError: `bundle_damaged`, `bundle_too_large`, `signature_invalid`, `signer_unknown`, `signer_revoked`.
    """
    name = path.name
    if path.stat().st_size > MAX_SIZE:
        raise BundleError("bundle_too_large", f"{name} is no report: it has more than {MAX_SIZE} bytes")
    envelope = canonical.load(path.read_bytes(), name)
    claimed = _unverified_payload(envelope, name)
    card = keys.roster.require(claimed["by"]["fingerprint"], claimed["run"], name)
    signing.opened(envelope, PAYLOAD, card.public_key, name)
    return _report(claimed)


def _unverified_payload(envelope: Any, file_name: str) -> dict[str, Any]:
    """Return the payload of a report's envelope, checked for its form; its signature has not been verified yet.

    Raises:
        BundleError: `bundle_damaged`.
    """
    try:
        payload: dict[str, Any] = canonical.load(base64.b64decode(envelope["payload"], validate=True), file_name)
        sound = (
            payload.keys() == _FIELDS
            and is_count(payload["format"])
            and payload["format"] == 1
            and payload["by"].keys() == {"name", "fingerprint"}
            and is_name(payload["by"]["name"])
            and is_digest(payload["by"]["fingerprint"])
            and is_digest(payload["run"])
            and (payload["bundle"] is None or is_digest(payload["bundle"]))
            and is_count(payload["task_id"])
            and is_name(payload["site"])
            and is_moment(payload["created_at"])
            and are_metrics(payload["scores"])
        )
        if sound:
            return payload
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise BundleError("bundle_damaged", f"{file_name} is not a report of relay")


def _report(payload: dict[str, Any]) -> SignedReport:
    return SignedReport(
        payload["run"],
        payload["task_id"],
        payload["site"],
        payload["bundle"],
        payload["scores"],
        payload["created_at"],
        payload["by"]["name"],
    )
