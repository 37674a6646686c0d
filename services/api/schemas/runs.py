"""Define the request and response bodies of runs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field

from services.api.schemas.common import EXAMPLE_RUN, EXAMPLE_TIME, RequestBody, ResponseBody, RunId

TaskNumber = Annotated[int, Field(ge=1, le=1_000_000)]
"""Is the number of a site in its run, the task_id."""


class RunSite(ResponseBody):
    """Describes one site of a run."""

    task_id: int
    name: str
    trained: bool
    """Says whether it takes its turn in the relay; otherwise only its test set counts."""


class Run(ResponseBody):
    """Describes a run, whose run file the sites of a relay share."""

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
    """Is the SHA-256 of what the sites share, and so the same at every site of the relay."""
    name: str
    strategy: str
    """Names the strategy, such as relay, sequential, local or joint."""
    sites: list[RunSite]
    """Lists the sites in the order of the run file."""
    site: int | None
    """Is the task_id of the site that this hospital is; null: all of them are on this machine."""
    version: int
    """Goes up with every change; it is also the ETag."""
    created_at: datetime


class RunPreview(ResponseBody):
    """Says what a run file would register, and where it leaves something out of account."""

    id: RunId
    name: str
    strategy: str
    sites: list[RunSite]
    text: str
    """Is the run file in canonical form: it extends nothing."""
    notes: list[str]
    """Lists keys of the published vocabulary that are read, and mean nothing here."""


class Recipe(ResponseBody):
    """Holds a run file that comes with the software."""

    name: str = Field(examples=["fundus-cpu"])
    about: str
    text: str
    """Is the run file as it is, YAML with its comments."""


class RunChange(RequestBody):
    """Says which hop of the relay this site is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"site": 2}]})

    site: TaskNumber | None
    """Is the task_id of one of the run's trained sites; null: all of them are on this machine."""
