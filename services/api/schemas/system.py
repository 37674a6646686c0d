"""Define the response bodies about the service itself."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field

from services.api.schemas.common import EXAMPLE_JOB, EXAMPLE_RUN, EXAMPLE_TIME, ResponseBody
from services.site import Role


class SignedIn(ResponseBody):
    """Says who is signed in at the page, or whose token a request has."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"name": "ana", "role": "operator", "actor": "ana (3f9c01d2ab)", "csrf_token": EXAMPLE_RUN,
                 "idle_seconds": 1800.0}
            ]
        }
    )  # fmt: skip

    name: str
    """Is the name of the token."""
    role: Role
    actor: str
    """Is what the audit log, and a job's `created_by`, call the holder."""
    csrf_token: str | None
    """Is to be sent as X-CSRF-Token with every change that a browser's session makes; null: the request has a token."""
    idle_seconds: float
    """Is how long a session lasts after somebody last worked with the page."""


class Health(ResponseBody):
    """Says that the process answers."""

    status: Literal["ok"] = "ok"
    instance: str | None
    """Names this process, where whoever started it gave it a name."""


class Check(ResponseBody):
    """Says whether one condition of readiness holds."""

    ok: bool
    detail: str = Field(examples=["free 91234 MiB, needed 512 MiB"])


class Readiness(ResponseBody):
    """Says whether the site can take jobs and carry them out."""

    status: Literal["ready", "degraded", "not_ready"]
    """Sums up the checks; degraded: the site works, but not as the settings ask for."""
    checks: dict[str, Check] = Field(examples=[{"database": {"ok": True, "detail": "took a write"}}])


class Worker(ResponseBody):
    """Describes a worker process whose heartbeat came lately."""

    id: str = Field(examples=["gpu-1:412:1795449900"])
    host: str
    facts: dict[str, Any] = Field(examples=[{"device": "cuda:0", "ops": "cuda", "version": "0.2.0"}])
    started_at: datetime
    seen_at: datetime


class System(ResponseBody):
    """Describes the service: its version, database, storage and workers."""

    version: str
    site_name: str
    role: Role
    """Is the role of the token that asks."""
    database: str = Field(examples=["sqlite"])
    storage_free_mib: int
    storage_min_free_mib: int
    """Is the free space below which no job is taken."""
    readiness: Readiness
    """Is what `/readyz` says."""
    workers: list[Worker]


class AuditRecord(ResponseBody):
    """Says who did what; each record holds the hash of the one before."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"seq": 17, "at": EXAMPLE_TIME, "actor": "ana (3f9c01d2ab)", "action": "job.submit", "subject": EXAMPLE_JOB,
                 "detail": {"kind": "train"}, "previous": EXAMPLE_RUN, "hash": EXAMPLE_RUN}
            ]
        }
    )  # fmt: skip

    seq: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    previous: str
    hash: str


class AuditVerified(ResponseBody):
    """Says that every row of the audit log fits the one before."""

    rows: int
    head: str = Field(examples=[EXAMPLE_RUN])
    """Is the hash of the newest row: note it down."""


class CatalogueEntry(ResponseBody):
    """Says what a problem's type means."""

    type: str = Field(examples=["/problems/not_found"])
    title: str = Field(examples=["There is no such thing"])
    status: int = Field(examples=[404])
