"""Define what all bodies share: ids, text, pages and problems."""

from __future__ import annotations

from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.json_schema import SkipJsonSchema

Item = TypeVar("Item")
Absent = SkipJsonSchema[None]
"""Marks an optional parameter of a query or header: it may be left out, but cannot be written as null."""

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
"""A run's id is the SHA-256 of what the sites of its relay share, and so the same at each of them."""
Words = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]
"""A text to filter by; it holds no NUL, which PostgreSQL's text cannot hold."""
Note = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00]*$"), Field(examples=["left eyes are excluded"])]
"""A free text for people."""


class ResponseBody(BaseModel):
    """Is the base class of everything that the service answers with."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)


class RequestBody(BaseModel):
    """Is the base class of everything that a client sends; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Page(ResponseBody, Generic[Item]):
    """Holds one page of a list, newest first."""

    items: list[Item]
    next_cursor: str | None
    """Give it back as `cursor`, with the same filters, for the next page; null: this was the last page."""


class FieldProblem(ResponseBody):
    """Says what is wrong with one key of a request."""

    path: str = Field(examples=["body.gpus"])
    """Says where the key stands: body, query, path or header, then the key itself."""
    message: str = Field(examples=["Input should be less than or equal to 16"])


class Problem(BaseModel):
    """Says what went wrong: a problem document (RFC 9457)."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="allow")

    type: str = Field(examples=["/problems/not_found"])
    """Identifies the kind of problem, by the address that explains it."""
    title: str = Field(examples=["There is no such thing"])
    """Names the problem; it is the same for every problem of this type."""
    status: int = Field(examples=[404])
    """Repeats the HTTP status of the answer."""
    detail: str = Field(examples=[f"there is no job {EXAMPLE_JOB}"])
    """Says what was wrong this time, and what to do."""
    instance: str = Field(examples=[f"/api/v1/jobs/{EXAMPLE_JOB}"])
    """Is the path that was requested."""
    code: str = Field(examples=["not_found"])
    """Is the key of this type of problem in the catalogue, for programs."""
    request_id: str = Field(examples=["4f2a9c31d7e84b60"])
    """Identifies the request; it also stands in the header X-Request-ID and in the service's log."""
    error: str = Field(examples=[f"there is no job {EXAMPLE_JOB}"])
    """Repeats the detail under the key that Open Inference Protocol clients read."""
    errors: list[FieldProblem] = []
    """Lists the wrong keys of a request that is not valid."""
