"""Summarises a bundle for people and services."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from relay_core.bundle.history import Record
from relay_core.bundle.manifest import Scores
from relay_core.bundle.trust import Roster
from relay_core.bundle.weights import file_digest
from relay_core.errors import BundleError


@dataclass(frozen=True)
class BundleFacts:
    """Summarises a bundle as plain data that can be written as JSON."""

    digest: str
    """The digest of the bundle's content, which is the same whether or not it is encrypted."""
    run: str
    """The digest of the run."""
    hop: int
    """The number of the hop: 1 at the first site."""
    task_id: int
    """The number of the site that trained last."""
    site: str
    """The name of the site that trained last."""
    signer: dict[str, Any]
    """The site that signed the bundle, as {name, fingerprint, trusted}."""
    recipient: str | None
    """The fingerprint of the one site that the bundle is for; None: it is for anyone."""
    parent: str | None
    """The digest of the bundle that the last training started from; None at the first hop."""
    created_at: float
    """The time at which the bundle was made, in Unix seconds."""
    half: bool
    """Whether weights are carried in half precision where they fit."""
    version: str
    """The version of relay that made the bundle."""
    step: int
    """The training step of the checkpoint."""
    images: int
    """The number of the last site's labelled training images."""
    metrics: Scores
    """Test set -> metric -> mean."""
    history: list[dict[str, Any]]
    """One entry per hop: {hop, task_id, site, signer, fingerprint, trusted, images, metrics, bundle, created_at,
    audit, privacy}; `audit` is None where the site said nothing of a privacy audit, `privacy` where it did not train with
    differential privacy."""
    size: int
    """The size of the bundle file in bytes."""
    file_sha256: str
    """The SHA-256 of the bundle file, as it is (encrypted or not)."""

    @classmethod
    def of(cls, made: dict[str, Any], records: Sequence[Record], digest: str, roster: Roster, file: Path) -> BundleFacts:
        """Collect the facts from a checked bundle.

        Args:
            made: the manifest.
            records: the history.
            digest: the digest of the bundle's content.
            roster: the keys that this site trusts.
            file: the bundle file.
        """
        bundles = [record["parent"] for record in records[1:]] + [digest]
        hops = [
            {
                "hop": record["hop"], "task_id": record["task_id"], "site": record["site"],
                "signer": record["signer"]["name"], "fingerprint": record["signer"]["fingerprint"],
                "trusted": is_trusted(roster, record["signer"]["fingerprint"], record["run"]), "images": record["images"],
                "metrics": record["metrics"], "bundle": bundle, "created_at": record["created_at"],
                "audit": record.get("audit"), "privacy": record.get("privacy"),
            }
            for record, bundle in zip(records, bundles, strict=True)
        ]  # fmt: skip
        return cls(
            digest=digest, signer={**made["signer"], "trusted": hops[-1]["trusted"]}, version=made["relay"],
            step=made["checkpoint"]["step"], images=made["checkpoint"]["images"], history=hops, size=file.stat().st_size,
            file_sha256=file_digest(file),
            **{key: made[key] for key in (
                "run", "hop", "task_id", "site", "recipient", "parent", "created_at", "half", "metrics")},
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return the facts as plain data for JSON."""
        return asdict(self)


def is_trusted(roster: Roster, fingerprint: str, run: str) -> bool:
    """Return whether the roster trusts a key (its fingerprint) for a run (its digest)."""
    try:
        roster.require(fingerprint, run, "")
    except BundleError:
        return False
    return True
