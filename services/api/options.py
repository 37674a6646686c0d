"""Check a data set's options: what a run file has under dataset.kwargs, without what leads out of the set's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from relay_core.config import Settings, dataset_class, outside_values
from services.api.schemas import Setting
from services.site import Refusal

ELSEWHERE = ("task_id", "task_name", "img_folder", "root_path")
"""Keys that are no options, because a data set's name and path, or the run, already give their values."""


def check(layout: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of a data set and return them as they were given.

    Args:
        layout: the data set's name in a run file.
        options: its settings, as under dataset.kwargs.

    Raises:
        Refusal: `invalid_request`, or `path_escape` for a folder or file outside the data set's folder.
    """
    for key in ELSEWHERE:
        if key in options:
            raise _invalid(f"options.{key}", "is not an option: a data set's name and path say it")
    try:
        dataset_class(layout).model_validate(options)
        json.dumps(options, allow_nan=False)
    except ValidationError as error:
        item = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(["options", *(str(part)[:100] for part in item["loc"])])
        raise _invalid(path, item["msg"].removeprefix("Value error, ")) from None
    except ValueError:
        raise _invalid("options", "holds a number that is not finite") from None
    for key, _ in outside_values("options", dict(options)):
        raise Refusal("path_escape", f"{key} is relative to the data set's folder, without ..")
    return dict(options)


def settings(kwargs: type[Settings]) -> list[Setting]:
    """Return the settings of a class, with their texts, for a form."""
    schema = kwargs.model_json_schema()
    return [
        Setting(
            key=key, about=" ".join(facts.get("description", "").split()), default=facts.get("default"),
            choices=facts.get("enum", []), kind=_kind(facts),
        )
        for key, facts in schema["properties"].items()
        if key not in ELSEWHERE
    ]  # fmt: skip


def _kind(facts: Mapping[str, Any]) -> Literal["number", "text", "switch", "yaml"]:
    """Return how a setting is written down: JSON Schema's type, or `yaml` where it holds several values."""
    kinds = [kind for kind in (option.get("type") for option in facts.get("anyOf", [facts])) if kind != "null"]
    if kinds in (["integer"], ["number"], ["integer", "number"]):
        return "number"
    return "text" if kinds == ["string"] else "switch" if kinds == ["boolean"] else "yaml"


def _invalid(path: str, message: str) -> Refusal:
    errors = [{"path": f"body.{path}", "message": message}]
    return Refusal("invalid_request", f"body.{path}: {message}", extra={"errors": errors})
