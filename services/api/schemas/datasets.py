"""Define the request and response bodies of data sets."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, StringConstraints, WithJsonSchema

from relay_core.config import DATASETS
from services.api.schemas.common import EXAMPLE_DATASET, EXAMPLE_TIME, DatasetId, Note, RequestBody, ResponseBody

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}$")]


def _check_layout(layout: str) -> str:
    if layout not in DATASETS:
        raise ValueError(DATASETS.unknown(layout))
    return layout


Layout = Annotated[str, AfterValidator(_check_layout), WithJsonSchema({"type": "string", "enum": list(DATASETS)})]
"""Names how a data set's files lie, as a run file does; it is built in, or comes with an installed package."""
Options = Annotated[
    dict[str, Any],
    Field(examples=[{"num_classes": 3}]),
]
"""The settings of a layout, as under dataset.kwargs of a run file without the keys that name the site and its folder."""

_EXAMPLE: dict[str, JsonValue] = {
    "name": "Domain1",
    "path": "fundus/Domain1",
    "layout": "fundus",
    "options": {},
    "note": "second scanner",
}


class Folder(ResponseBody):
    """Describes a folder below the site's data root."""

    path: str = Field(examples=["fundus"])
    """Leads to it from the data root; empty: the data root itself."""
    folders: list[str] = Field(examples=[["fundus/Domain1"]])
    """Lists the paths of the folders in it."""
    files: int
    """Counts the files that lie in it, those in its folders left out."""
    more: bool
    """Says that there are more folders than are listed; a path can be written by hand."""


class Setting(ResponseBody):
    """Describes one setting of a layout."""

    key: str = Field(examples=["num_classes"])
    about: str = Field(examples=["Number of classes, the background (class 0) included."])
    default: Any = Field(examples=[3])
    choices: list[Any]
    """Lists the values that it may have; empty: it is free."""
    kind: Literal["number", "text", "switch", "yaml"]
    """Says how it is written down; yaml: as a list, or as keys with values."""


class LayoutFacts(ResponseBody):
    """Describes a layout: how a data set's files lie."""

    name: str = Field(examples=["folder"])
    about: str
    settings: list[Setting]


class DatasetRequest(RequestBody):
    """Names a folder below the site's data root that is to be registered as a data set."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    name: Name
    """Must be unique; a run's site whose task_name is this name finds its images here by itself."""
    path: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    """Leads to the folder from the data root, with / between folders; no `..`, no symbolic link on the way or inside."""
    layout: Layout
    """Says how its files lie, by the data set's name in a run file: see docs/catalogue.md."""
    options: Options = Field(default_factory=dict)
    """Holds the settings of the layout, as a run file has them under dataset.kwargs."""
    note: Note = ""
    """Is a free text for people."""


class DatasetChange(RequestBody):
    """Says what to change of a data set; a key that is left out, or null, stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"note": "masks were drawn again in May"}]})

    options: Options | None = None
    """Holds all options: they replace the present ones."""
    note: Note | None = None


class Dataset(ResponseBody):
    """Describes a registered data set."""

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
    """Leads to the folder from the data root."""
    layout: str
    options: dict[str, Any]
    note: str
    report: dict[str, Any] | None
    """Holds what the last preflight job found; null before it: counts, unreadable files, class shares, sizes, duplicates."""
    version: int
    """Goes up with every change; it is also the ETag."""
    created_at: datetime
