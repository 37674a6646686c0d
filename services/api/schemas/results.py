"""Checkpoints and evaluations on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import ConfigDict, JsonValue

from services.api.schemas.common import (
    EXAMPLE_CHECKPOINT,
    EXAMPLE_EVALUATION,
    EXAMPLE_JOB,
    EXAMPLE_RUN,
    EXAMPLE_TIME,
    CheckpointId,
    EvaluationId,
    JobId,
    Note,
    RequestBody,
    ResponseBody,
    RunId,
)

_MATRIX: dict[str, JsonValue] = {"rows": ["Domain1"], "columns": ["Domain1", "Domain2"], "values": [[0.91, 0.74]]}


class Checkpoint(ResponseBody):
    """What a training left at a site: the relay goes on from it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": EXAMPLE_CHECKPOINT, "run_id": EXAMPLE_RUN, "job_id": EXAMPLE_JOB, "parent_id": None, "task_id": 1,
                    "site": "Domain1", "step": 2000, "digest": EXAMPLE_RUN, "content_digest": EXAMPLE_RUN, "size": 91234567,
                    "pinned": False, "note": "", "version": 1, "created_at": EXAMPLE_TIME,
                }
            ]
        }
    )  # fmt: skip

    id: CheckpointId
    run_id: RunId
    job_id: JobId
    parent_id: str | None
    """The checkpoint of the site before that its training started from."""
    task_id: int
    site: str
    step: int
    digest: str
    """SHA-256 of the file."""
    content_digest: str
    """The digest inside the file, over tensors and settings."""
    size: int
    """Bytes of the file."""
    pinned: bool
    """A pinned checkpoint cannot be deleted."""
    note: str
    version: int
    """Also the ETag."""
    created_at: datetime


class CheckpointChange(RequestBody):
    """What to change; a key that is left out, or null, stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"pinned": True, "note": "the one of the paper"}]})

    pinned: bool | None = None
    note: Note | None = None


class EvaluationSummary(ResponseBody):
    """Scores on test sets, without the scores."""

    id: EvaluationId
    job_id: JobId
    run_id: RunId
    checkpoint_id: str | None
    """The newest checkpoint that was scored; null once it was deleted."""
    metrics: list[str]
    """Names of the matrices."""
    created_at: datetime


class Evaluation(EvaluationSummary):
    """Scores on test sets: the site x test-set matrix of each metric."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": EXAMPLE_EVALUATION, "job_id": EXAMPLE_JOB, "run_id": EXAMPLE_RUN,
                    "checkpoint_id": EXAMPLE_CHECKPOINT, "metrics": ["dice_per_sample"],
                    "created_at": EXAMPLE_TIME, "matrices": {"dice_per_sample": _MATRIX},
                }
            ]
        }
    )  # fmt: skip

    matrices: dict[str, Any]
    """Metric -> rows (after which site), columns (test sites), values, and the figures of transfer."""
