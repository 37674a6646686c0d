"""The service itself on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field

from services.api.schemas.common import EXAMPLE_JOB, EXAMPLE_RUN, EXAMPLE_TIME, ResponseBody
from services.site import Role


class Health(ResponseBody):
    """The process answers."""

    status: Literal["ok"] = "ok"
    instance: str | None
    """What its starter named it, where it did."""


class Check(ResponseBody):
    """One condition of readiness."""

    ok: bool
    detail: str = Field(examples=["free 91234 MiB, needed 512 MiB"])


class Readiness(ResponseBody):
    """Whether the site can take and carry out jobs."""

    status: Literal["ready", "degraded", "not_ready"]
    """degraded: it works, but not as the settings ask for."""
    checks: dict[str, Check] = Field(examples=[{"database": {"ok": True, "detail": "took a write"}}])


class Worker(ResponseBody):
    """A worker process that was seen lately."""

    id: str = Field(examples=["gpu-1:412:1795449900"])
    host: str
    facts: dict[str, Any] = Field(examples=[{"device": "cuda:0", "ops": "cuda", "version": "0.2.0"}])
    started_at: datetime
    seen_at: datetime


class System(ResponseBody):
    """What runs here."""

    version: str
    site_name: str
    role: Role
    """Of the token that asks."""
    database: str = Field(examples=["sqlite"])
    storage_free_mib: int
    storage_min_free_mib: int
    """Below it no job is taken."""
    workers: list[Worker]


class AuditRecord(ResponseBody):
    """Who did what; each row holds the hash of the one before."""

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


class CatalogueEntry(ResponseBody):
    """What a problem's type means."""

    type: str = Field(examples=["/problems/not_found"])
    title: str = Field(examples=["There is no such thing"])
    status: int = Field(examples=[404])
