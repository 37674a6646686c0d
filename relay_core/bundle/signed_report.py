"""A site's evaluation on its way to the coordinator: metrics only, signed (DSSE)."""

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
    """Scores of one checkpoint at one site."""

    run: str
    task_id: int
    """The checkpoint's site."""
    site: str
    bundle: str | None
    """Digest of the bundle that the checkpoint came in; None: it was trained where it was scored."""
    scores: Scores
    """Test set -> metric -> mean."""
    created_at: float
    by: str
    """Who signed."""


def sign_report(scores: Path, checkpoint: Path, run: RunFile, keys: KeyFolder, target: Path) -> SignedReport:
    """Write a signed report of a `scores.json`.

    Raises:
        BundleError: `bundle_other_run`, `bundle_incomplete`, `key_missing`, `key_locked`.
        CheckpointError: the checkpoint is damaged.
    """
    source = weights.read_checkpoint(checkpoint)
    meta = source.meta
    if meta["run"] != run.digest:
        raise BundleError("bundle_other_run", "the checkpoint was trained with another run file than the one given")
    made = {
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
    write_atomically(target, canonical.dump(signing.envelope(canonical.dump(made), PAYLOAD, keys)))
    return _report(made)


def read_report(path: Path, keys: KeyFolder) -> SignedReport:
    """A report whose signer is trusted here.

    Raises:
        BundleError: `bundle_damaged`, `bundle_too_large`, `signature_invalid`, `signer_unknown`, `signer_revoked`.
    """
    what = path.name
    if path.stat().st_size > MAX_SIZE:
        raise BundleError("bundle_too_large", f"{what} is no report: it has more than {MAX_SIZE} bytes")
    envelope = canonical.load(path.read_bytes(), what)
    claimed = _payload(envelope, what)
    card = keys.roster.require(claimed["by"]["fingerprint"], claimed["run"], what)
    signing.opened(envelope, PAYLOAD, card.public_key, what)
    return _report(claimed)


def _payload(envelope: Any, what: str) -> dict[str, Any]:
    """What a report says; not to be believed before its signature has been checked."""
    try:
        found: dict[str, Any] = canonical.load(base64.b64decode(envelope["payload"], validate=True), what)
        sound = (
            found.keys() == _FIELDS
            and is_count(found["format"])
            and found["format"] == 1
            and found["by"].keys() == {"name", "fingerprint"}
            and is_name(found["by"]["name"])
            and is_digest(found["by"]["fingerprint"])
            and is_digest(found["run"])
            and (found["bundle"] is None or is_digest(found["bundle"]))
            and is_count(found["task_id"])
            and is_name(found["site"])
            and is_moment(found["created_at"])
            and are_metrics(found["scores"])
        )
        if sound:
            return found
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise BundleError("bundle_damaged", f"{what} is not a report of relay")


def _report(made: dict[str, Any]) -> SignedReport:
    return SignedReport(
        made["run"], made["task_id"], made["site"], made["bundle"], made["scores"], made["created_at"], made["by"]["name"]
    )
