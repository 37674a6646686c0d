"""Define the request and response bodies of the hand-off: exports and imports of bundles."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import ConfigDict, Discriminator, Field, JsonValue, StringConstraints, Tag

from services.api.schemas.common import (
    EXAMPLE_CHECKPOINT,
    EXAMPLE_EVALUATION,
    EXAMPLE_JOB,
    EXAMPLE_RUN,
    EXAMPLE_TIME,
    CheckpointId,
    EvaluationId,
    JobId,
    RequestBody,
    ResponseBody,
    RunId,
)
from services.api.schemas.jobs import JobError
from services.site import Purpose, Shown

EXAMPLE_BUNDLE = "bundle-019a8c1d2e3f4a5b6c7d8e9f0a1b"

BundleId = Annotated[str, StringConstraints(pattern=r"^bundle-[0-9a-f]{28}$"), Field(examples=[EXAMPLE_BUNDLE])]
Recipient = Annotated[
    str,
    StringConstraints(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$"),
    Field(examples=["South Clinic"]),
]
Reason = Annotated[
    str, StringConstraints(min_length=1, max_length=2000, pattern=r"^[^\x00]*$"), Field(examples=["Dice fell on Domain1"])
]

Override = Annotated[
    str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00]*$"), Field(examples=["All images are public"])
]

_FACTS: dict[str, JsonValue] = {
    "digest": EXAMPLE_RUN, "run": EXAMPLE_RUN, "hop": 1, "task_id": 1, "site": "Domain1",
    "signer": {"name": "North Clinic", "fingerprint": EXAMPLE_RUN}, "recipient": None, "parent": None,
    "created_at": 1795449900.25, "half": False, "version": "0.2.0", "step": 2000, "images": 60,
    "metrics": {"Domain1": {"dice_per_sample": 0.91}}, "history": [], "size": 91234567, "file_sha256": EXAMPLE_RUN,
}  # fmt: skip


class ExportRequest(RequestBody):
    """Build the signed bundle that carries a checkpoint to the next site."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"checkpoint_id": EXAMPLE_CHECKPOINT, "recipient": "South Clinic", "half": False}]}
    )

    checkpoint_id: CheckpointId
    recipient: Recipient | None = None
    """Name or fingerprint of a trusted key that the file is encrypted for; null: whoever has the file can read it."""
    half: bool = False
    """Says whether the weights are carried in half precision, in a file of half the size."""
    discriminators: bool = True
    """Says whether the networks travel that tell generated images from real ones; otherwise the next site's start anew."""
    override: Override | None = None
    """Is the reason to let it leave although no privacy audit passed; it stands in the audit log, and travels signed in the
    bundle's history."""


class ReportRequest(RequestBody):
    """Sign an evaluation's scores, metrics only, for the coordinator of the relay."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"evaluation_id": EXAMPLE_EVALUATION}]})

    evaluation_id: EvaluationId


def _request_tag(body: Any) -> str:
    return "report" if isinstance(body, dict) and "evaluation_id" in body else "model"


HandOffRequest = Annotated[
    Annotated[ExportRequest, Tag("model")] | Annotated[ReportRequest, Tag("report")], Discriminator(_request_tag)
]


class _Bundle(ResponseBody):
    id: BundleId
    run_id: str | None
    checkpoint_id: str | None
    job_id: JobId
    digest: str
    """Is the SHA-256 of the file."""
    size: int
    """Is the size of the file in bytes."""
    content_digest: str | None
    """Identifies the bundle's content, whether the file is encrypted or not."""
    facts: dict[str, Any] | None
    """Holds what the bundle's signed manifest says: signer, hop, metrics, history. Metrics are null where the test set's
    `withheld` is 5: fewer patients stand behind them."""
    created_by: str
    created_at: datetime


class Export(_Bundle):
    """Describes a signed bundle that is ready to be downloaded."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": EXAMPLE_BUNDLE, "run_id": EXAMPLE_RUN, "checkpoint_id": EXAMPLE_CHECKPOINT, "job_id": EXAMPLE_JOB,
                    "digest": EXAMPLE_RUN, "size": 91234567, "content_digest": EXAMPLE_RUN, "facts": _FACTS,
                    "created_by": "ana (3f9c01d2ab)", "created_at": EXAMPLE_TIME,
                }
            ]
        }
    )  # fmt: skip


class Import(_Bundle):
    """Describes a bundle that was brought here; nothing uses it before an operator has accepted it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": EXAMPLE_BUNDLE, "state": "quarantined", "purpose": "train", "run_id": EXAMPLE_RUN,
                    "checkpoint_id": None, "job_id": EXAMPLE_JOB, "digest": EXAMPLE_RUN, "size": 91234567,
                    "content_digest": EXAMPLE_RUN, "facts": _FACTS, "error": None, "created_by": "ana (3f9c01d2ab)",
                    "created_at": EXAMPLE_TIME, "decided_by": None, "decided_at": None, "reason": None,
                }
            ]
        }
    )  # fmt: skip

    state: Shown
    """Goes from verifying to quarantined or refused, and from quarantined to accepted or rejected."""
    purpose: Purpose
    """Says what the bundle is for; train: to go on from it here, evaluate: only to score it."""
    error: JobError | None
    """Says why a bundle was refused; null: it was not, or its verification was cancelled."""
    decided_by: str | None
    """Names who accepted or rejected it."""
    decided_at: datetime | None
    reason: str | None
    """Says why it was rejected."""


UPLOAD_NAME = r"^[A-Za-z0-9-]{8,64}$"


class UploadState(ResponseBody):
    """Says how far an upload in pieces is."""

    received: int
    """Is the number of bytes that came so far: where the next piece begins."""
    piece_limit: int
    """Is the most bytes of a piece."""


class TrustedKey(ResponseBody):
    """Describes a key that this site trusts, or trusts no more."""

    fingerprint: str = Field(examples=[EXAMPLE_RUN])
    name: str = Field(examples=["South Clinic"])
    run: str | None
    """Is the id of the run that the trust is for; null: every run."""
    added_at: datetime | None
    revoked_at: datetime | None
    """Is when it was revoked; null: it is trusted."""


class Keys(ResponseBody):
    """Lists the keys that this site knows."""

    own: TrustedKey | None
    """Is this site's own key; null: no worker has told of it yet."""
    card: str | None
    """Is the content of this site's card.json, which the other sites need."""
    trusted: list[TrustedKey]
    confirmed_at: datetime | None
    """Is when a worker last read the folder of keys."""


class KeyPreview(ResponseBody):
    """Says whose a card is."""

    name: str = Field(examples=["South Clinic"])
    fingerprint: str = Field(examples=[EXAMPLE_RUN])


class TrustRequest(RequestBody):
    """Trusts a site by its card."""

    card: Annotated[str, StringConstraints(min_length=1, max_length=10_000, pattern=r"^[^\x00]*$")] = Field(
        examples=['{"age":"age1...","format":1,"name":"South Clinic","proof":"MEUC...","public_key":"-----BEGIN ..."}']
    )
    """Is the content of the site's card.json, as it is."""
    run_id: RunId | None = None
    """Limits the trust to one run; null: every run."""


class Rejection(RequestBody):
    """Says why an import is rejected."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "Dice fell on Domain1"}]})

    reason: Reason
