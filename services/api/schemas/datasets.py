"""Data sets on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, StringConstraints, WithJsonSchema

from relay_core.config import DATASETS
from services.api.schemas.common import EXAMPLE_DATASET, EXAMPLE_TIME, DatasetId, Note, RequestBody, ResponseBody

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}$")]


def _is_known(layout: str) -> str:
    if layout not in DATASETS:
        raise ValueError(DATASETS.unknown(layout))
    return layout


Layout = Annotated[str, AfterValidator(_is_known), WithJsonSchema({"type": "string", "enum": list(DATASETS)})]
"""A data set's name in a run file: built in, or of an installed package."""
Options = Annotated[
    dict[str, Any],
    Field(examples=[{"num_classes": 3}]),
]
"""As under dataset.kwargs of a run file, without the keys that name the site and its folder."""

_EXAMPLE: dict[str, JsonValue] = {
    "name": "Domain1",
    "path": "fundus/Domain1",
    "layout": "fundus",
    "options": {},
    "note": "second scanner",
}


class DatasetRequest(RequestBody):
    """A folder below the site's data root, to be registered."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    name: Name
    """Unique; a run's site with this task_name finds its images here by itself."""
    path: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    """Relative to the data root, with / between folders; no `..`, no symbolic link on the way or inside."""
    layout: Layout
    """How its files lie, by the data set's name in a run file: see docs/catalogue.md."""
    options: Options = Field(default_factory=dict)
    """Settings of the layout, as a run file has them under dataset.kwargs."""
    note: Note = ""
    """For people."""


class DatasetChange(RequestBody):
    """What to change; a key that is left out, or null, stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"note": "masks were drawn again in May"}]})

    options: Options | None = None
    """All of them: they replace the ones before."""
    note: Note | None = None


class Dataset(ResponseBody):
    """A registered data set."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"id": EXAMPLE_DATASET, **_EXAMPLE, "report": None, "version": 1, "created_at": EXAMPLE_TIME},
            ]
        }
    )

    id: DatasetId
    name: str
    path: str
    """Relative to the data root."""
    layout: str
    options: dict[str, Any]
    note: str
    report: dict[str, Any] | None
    """What the last preflight job said: counts, unreadable files, class shares, sizes, duplicates."""
    version: int
    """Also the ETag."""
    created_at: datetime
