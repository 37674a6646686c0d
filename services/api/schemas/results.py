"""Define the request and response bodies of checkpoints and evaluations."""

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
    """Describes a checkpoint, which a training left at a site for the relay to go on from."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": EXAMPLE_CHECKPOINT, "run_id": EXAMPLE_RUN, "job_id": EXAMPLE_JOB, "parent_id": None, "task_id": 1,
                    "site": "Domain1", "step": 2000, "finished": True, "digest": EXAMPLE_RUN,
                    "content_digest": EXAMPLE_RUN, "size": 91234567, "pinned": False, "note": "",
                    "version": 1, "created_at": EXAMPLE_TIME,
                }
            ]
        }
    )  # fmt: skip

    id: CheckpointId
    run_id: RunId
    job_id: JobId
    parent_id: str | None
    """Names the checkpoint, of the site before, that its training started from."""
    task_id: int
    site: str
    step: int
    finished: bool
    """Says whether its training did all its steps; otherwise its solver alone is ready, and its generators are not."""
    digest: str
    """Is the SHA-256 of the file."""
    content_digest: str
    """Is the digest that stands in the file, over tensors and settings."""
    size: int
    """Is the size of the file in bytes."""
    pinned: bool
    """Says whether it is pinned: a pinned checkpoint cannot be deleted."""
    note: str
    version: int
    """Goes up with every change; it is also the ETag."""
    created_at: datetime


class CheckpointChange(RequestBody):
    """Says what to change of a checkpoint; a key that is left out, or null, stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"pinned": True, "note": "the one of the paper"}]})

    pinned: bool | None = None
    note: Note | None = None


class EvaluationSummary(ResponseBody):
    """Describes an evaluation on test sets, without its scores."""

    id: EvaluationId
    job_id: JobId
    run_id: RunId
    checkpoint_id: str | None
    """Names the newest checkpoint that was scored; null once it was deleted."""
    metrics: list[str]
    """Lists the metrics, each of which has a matrix."""
    created_at: datetime


class Evaluation(EvaluationSummary):
    """Holds an evaluation's scores on test sets: the site x test-set matrix of each metric."""

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
    """Maps a metric to its rows (after which site), columns (test sites), values, and figures of transfer."""
