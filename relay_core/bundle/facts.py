"""What people and services are told about a bundle."""

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
    """A bundle in brief; plain data, for JSON."""

    digest: str
    """Of its content: the same whether or not it is encrypted."""
    run: str
    hop: int
    task_id: int
    site: str
    signer: dict[str, Any]
    """{name, fingerprint, trusted}."""
    recipient: str | None
    parent: str | None
    created_at: float
    half: bool
    version: str
    step: int
    images: int
    metrics: Scores
    """Test set -> metric -> mean."""
    history: list[dict[str, Any]]
    """One entry a hop: {hop, task_id, site, signer, fingerprint, trusted, images, metrics, bundle, created_at}."""
    size: int
    """Bytes of the file."""
    file_sha256: str

    @classmethod
    def of(cls, made: dict[str, Any], records: Sequence[Record], digest: str, roster: Roster, file: Path) -> BundleFacts:
        """From a manifest, a history and the file."""
        bundles = [record["parent"] for record in records[1:]] + [digest]
        hops = [
            {
                "hop": record["hop"], "task_id": record["task_id"], "site": record["site"],
                "signer": record["signer"]["name"], "fingerprint": record["signer"]["fingerprint"],
                "trusted": is_trusted(roster, record["signer"]["fingerprint"], record["run"]), "images": record["images"],
                "metrics": record["metrics"], "bundle": bundle, "created_at": record["created_at"],
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
        """Plain data."""
        return asdict(self)


def is_trusted(roster: Roster, fingerprint: str, run: str) -> bool:
    """Whether the roster trusts a key for a run."""
    try:
        roster.require(fingerprint, run, "")
    except BundleError:
        return False
    return True
