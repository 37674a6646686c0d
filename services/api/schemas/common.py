"""What all bodies share: ids, text, pages, problems."""

from __future__ import annotations

from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.json_schema import SkipJsonSchema

Item = TypeVar("Item")
Absent = SkipJsonSchema[None]
"""An optional parameter of a query or header: it may be left out, but there is no way to write null."""

EXAMPLE_RUN = "9f2c6c1d3a0be5b1f0c37e1a4dd0c9d0a4a6c1f1f9e2b7f3a8d5c4e6b7a80912"
EXAMPLE_JOB = "job-019a8c1d2e3f0a1b2c3d4e5f6071"
EXAMPLE_DATASET = "dataset-019a8c1d2e3f1a2b3c4d5e6f7081"
EXAMPLE_CHECKPOINT = "checkpoint-019a8c1d2e3f2a3b4c5d6e7f8091"
EXAMPLE_EVALUATION = "evaluation-019a8c1d2e3f3a4b5c6d7e8f90a1"
EXAMPLE_TIME = "2026-11-23T16:05:00.250000Z"

DatasetId = Annotated[str, StringConstraints(pattern=r"^dataset-[0-9a-f]{28}$"), Field(examples=[EXAMPLE_DATASET])]
JobId = Annotated[str, StringConstraints(pattern=r"^job-[0-9a-f]{28}$"), Field(examples=[EXAMPLE_JOB])]
CheckpointId = Annotated[str, StringConstraints(pattern=r"^checkpoint-[0-9a-f]{28}$"), Field(examples=[EXAMPLE_CHECKPOINT])]
EvaluationId = Annotated[str, StringConstraints(pattern=r"^evaluation-[0-9a-f]{28}$"), Field(examples=[EXAMPLE_EVALUATION])]
RunId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$"), Field(examples=[EXAMPLE_RUN])]
"""SHA-256 of what the sites of a relay share: the same at each of them."""
Words = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]
"""A name to look for; PostgreSQL's text holds no NUL."""
Note = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00]*$"), Field(examples=["left eyes are excluded"])]


class ResponseBody(BaseModel):
    """Base of what the service answers with."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)


class RequestBody(BaseModel):
    """Base of what a client sends: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Page(ResponseBody, Generic[Item]):
    """One page of a list, newest first."""

    items: list[Item]
    next_cursor: str | None
    """Give it back as `cursor`, with the same filters, for the next page; null: this was the last one."""


class FieldProblem(ResponseBody):
    """What is wrong with one key of a request."""

    path: str = Field(examples=["body.gpus"])
    """Where: body, query, path or header, then the key."""
    message: str = Field(examples=["Input should be less than or equal to 16"])


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="allow")

    type: str = Field(examples=["/problems/not_found"])
    """Address of the catalogue's entry."""
    title: str = Field(examples=["There is no such thing"])
    """The same for every problem of this type."""
    status: int = Field(examples=[404])
    """HTTP status."""
    detail: str = Field(examples=[f"there is no job {EXAMPLE_JOB}"])
    """What was wrong this time, and what to do."""
    instance: str = Field(examples=[f"/api/v1/jobs/{EXAMPLE_JOB}"])
    """The address that was asked."""
    code: str = Field(examples=["not_found"])
    """For programs."""
    request_id: str = Field(examples=["4f2a9c31d7e84b60"])
    """Also in the header X-Request-ID, and in the service's log."""
    error: str = Field(examples=[f"there is no job {EXAMPLE_JOB}"])
    """The detail again, where Open Inference Protocol clients look."""
    errors: list[FieldProblem] = []
    """Of a request that is not valid: each key."""
