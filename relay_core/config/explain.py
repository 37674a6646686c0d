"""Say in one sentence what is wrong in a run file: file, line, key path, and the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from relay_core.config.base import Settings

Location = tuple[str | int, ...]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known name that is nearest to `name`, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


@dataclass(frozen=True)
class Source:
    """A YAML file and its syntax tree, to find lines in."""

    path: Path
    node: yaml.Node | None

    def line(self, location: Location) -> int | None:
        """Return the line (from 1) of a key or list entry, or None where the file does not have it."""
        node, line = self.node, None
        for key in location:
            child = _child(node, key)
            if child is None:
                return None
            line, node = child
        return line

    def where(self, location: Location) -> str:
        """Return `file:line` of the nearest enclosing key that the file has, or the file alone."""
        for stop in range(len(location), 0, -1):
            line = self.line(location[:stop])
            if line is not None:
                return f"{self.path}:{line}"
        return str(self.path)


def _child(node: yaml.Node | None, key: str | int) -> tuple[int, yaml.Node] | None:
    """Return the line (from 1) and the node of a mapping's key or a list's index; None where there is none."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == str(key):
                return name.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key].start_mark.line + 1, node.value[key]
    return None


def explain(
    error: ValidationError,
    raw: Any,
    model: type[Settings],
    sources: Sequence[Source],
    prefixes: Sequence[tuple[Location, int]],
) -> str:
    """Describe all errors of a validation, one line each.

    Args:
        error: what pydantic raised.
        raw: the merged mapping that was validated.
        model: the settings class that it was validated against.
        sources: the files that were merged, most specific first.
        prefixes: pairs (prefix, n): a file may have a location below `prefix`, without the location's first n keys.
    """
    lines = []
    for item in error.errors():
        location = item["loc"]
        key = ".".join(map(str, location))
        if item["type"] == "extra_forbidden":
            text = f"unknown key {key!r}{suggestion(str(location[-1]), _fields(model, raw, location[:-1]))}"
        elif item["type"] == "missing":
            text = f"{key} is missing"
        else:
            message = item["msg"].removeprefix("Value error, ")
            text = f"{key}: {message[0].lower() + message[1:]}"
        lines.append(f"{_where(location, sources, prefixes)}: {text}")
    return "\n".join(dict.fromkeys(lines))


def _where(location: Location, sources: Sequence[Source], prefixes: Sequence[tuple[Location, int]]) -> str:
    """Return `file:line` of the longest part of a location that a file has, or the first file alone."""
    for stop in range(len(location), 0, -1):
        for source in sources:
            for prefix, drop in prefixes:
                if stop <= drop:
                    continue
                line = source.line((*prefix, *location[drop:stop]))
                if line is not None:
                    return f"{source.path}:{line}"
    return str(sources[0].path)


def _fields(model: type[Settings], raw: Any, location: Location) -> list[str]:
    """Return the names of the fields that a settings class knows at a location."""
    current: list[type[Settings]] = [model]
    for key in location:
        annotations = [m.inner(str(key), raw if isinstance(raw, dict) else {}) for m in current]
        current = [inner for annotation in annotations for inner in _models(annotation)]
        raw = raw.get(key) if isinstance(raw, dict) else None
    return [name for m in current for name in m.model_fields]


def _models(annotation: Any) -> Iterator[type[Settings]]:
    """Yield the settings classes in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
