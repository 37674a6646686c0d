"""Runs on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field

from services.api.schemas.common import EXAMPLE_RUN, EXAMPLE_TIME, RequestBody, ResponseBody, RunId

TaskNumber = Annotated[int, Field(ge=1, le=1_000_000)]
"""Number of a site in its run."""


class RunSite(ResponseBody):
    """One site of a run."""

    task_id: int
    name: str
    trained: bool
    """Whether it takes its turn in the relay; otherwise only its test set counts."""


class Run(ResponseBody):
    """A relay's shared run file."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": EXAMPLE_RUN,
                    "name": "fundus-autumn",
                    "strategy": "relay",
                    "sites": [
                        {"task_id": 1, "name": "Domain1", "trained": True},
                        {"task_id": 2, "name": "Domain2", "trained": True},
                    ],
                    "site": 1,
                    "version": 2,
                    "created_at": EXAMPLE_TIME,
                }
            ]
        }
    )

    id: RunId
    """SHA-256 of what the sites share: the same at every site of the relay."""
    name: str
    strategy: str
    """relay, sequential, local or joint."""
    sites: list[RunSite]
    """In the order of the file."""
    site: int | None
    """Which of them this hospital is (its task_id)."""
    version: int
    """Also the ETag."""
    created_at: datetime


class RunChange(RequestBody):
    """Which hop of the relay this site is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"site": 2}]})

    site: TaskNumber | None
    """task_id of one of the run's trained sites; null: all of them are on this machine."""
