"""Turn YAML text into one mapping: checked as far as a mapping can be, and laid over the file that it extends."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from relay_core.config.explain import Source, suggestion
from relay_core.errors import RunFileError

TOP_KEYS = ("extends", "common", "all_tasks_datasets", "current_tasks")
MAX_BYTES = 1 << 20
MAX_VALUES = 20_000
"""Keys, values and list entries of a file with its aliases written out; a few aliases can stand for billions."""
MAX_DIGITS = 64
_FOREIGN_TAGS = ("binary", "set", "omap", "pairs")


def recipes() -> dict[str, Path]:
    """Return the paths of the run files that come with the package, by name."""
    folder = Path(str(resources.files("relay_core.config") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def merge(base: Any, over: Any) -> Any:
    """Return `base` overridden by `over`, key by key; anything but two mappings is replaced.

    A mapping that names another thing (data set, model, loss) takes nothing over from the one it replaces; neither do the
    settings of another solver (`solver_name`, `solver_kwargs`).
    """
    if isinstance(base, Mapping) and isinstance(over, Mapping) and base.get("name") == over.get("name", base.get("name")):
        if base.get("solver_name") != over.get("solver_name", base.get("solver_name")):
            base = {key: value for key, value in base.items() if key != "solver_kwargs"}
        return {**base, **{key: merge(base.get(key), value) for key, value in over.items()}}
    return over


def read_file(path: Path, seen: tuple[Path, ...] = ()) -> tuple[dict[str, Any], list[Source]]:
    """Return the mapping in a file, laid over the one that it extends, and its sources, most specific first.

    Args:
        path: the run file.
        seen: files that extend this one, directly or not.

    Raises:
        RunFileError: the file is not readable, too large, not YAML or not a mapping, has an unknown key, or extends itself.
    """
    if path in seen:
        raise RunFileError(f"{path}: extends itself")
    try:
        _check_size(path, path.stat().st_size)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunFileError(
            f"{path}: no such run file{suggestion(str(path), recipes())}; recipes: {', '.join(recipes())}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunFileError(f"{path}: cannot be read: {error}") from None
    raw, source, base = _parse(text, path)
    if base is None:
        return raw, [source]
    return _merge_over(raw, source, read_file(recipes().get(base, path.parent / base), (*seen, path)))


def read_text(text: str, path: Path) -> tuple[dict[str, Any], list[Source]]:
    """Do what `read_file` does for text that came from outside: open no file but a recipe's.

    Args:
        text: YAML.
        path: path that messages give for the text.

    Raises:
        RunFileError: as for `read_file`, or the text extends anything but a recipe.
    """
    _check_size(path, len(text.encode("utf-8", "surrogatepass")))
    raw, source, base = _parse(text, path)
    if base is None:
        return raw, [source]
    if base not in recipes():
        raise RunFileError(
            f"{source.where(('extends',))}: only a recipe can be extended here, not {base!r}"
            f"{suggestion(base, recipes())}; recipes: {', '.join(recipes())}"
        )
    return _merge_over(raw, source, read_file(recipes()[base]))


def _merge_over(
    raw: dict[str, Any], source: Source, base: tuple[dict[str, Any], list[Source]]
) -> tuple[dict[str, Any], list[Source]]:
    return merge(base[0], raw), [source, *base[1]]


def _check_size(path: Path, size: int) -> None:
    if size > MAX_BYTES:
        raise RunFileError(f"{path}: a run file of more than {MAX_BYTES} bytes is not read")


def _parse(text: str, path: Path) -> tuple[dict[str, Any], Source, str | None]:
    """Return the mapping without `extends`, its source, and what it extends (None: nothing). Raises RunFileError."""
    too_many = f"{path}: a run file of more than {MAX_VALUES} values, aliases written out, is not read"
    try:
        if _has_more_values(text):  # before a tree of them is built, which takes seconds
            raise RunFileError(too_many)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if _count_values(node, {}) > MAX_VALUES:
            raise RunFileError(too_many)
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RunFileError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise RunFileError(f"{path}: a run file is a mapping with the keys {', '.join(TOP_KEYS)}")
    source = Source(path, node)
    for key in raw:
        if key not in TOP_KEYS:
            raise RunFileError(f"{source.where((key,))}: unknown key {key!r}{suggestion(str(key), TOP_KEYS)}")
    base = raw.pop("extends", None)
    return raw, source, None if base is None else str(base)


def _has_more_values(text: str) -> bool:
    """Whether a text has more than `MAX_VALUES` values, aliases not written out; reads no further than that."""
    starts = (yaml.ScalarEvent, yaml.AliasEvent, yaml.CollectionStartEvent)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    values = (1 for event in yaml.parse(text, Loader=loader) if isinstance(event, starts))
    return next(islice(values, MAX_VALUES, None), None) is not None


def _count_values(node: yaml.Node | None, counts: dict[int, int]) -> int:
    """Count the values in a tree with its aliases written out; a node within itself counts as too many.

    Args:
        node: root of the tree.
        counts: counts of the collections that were visited, by the id of their node.

    Raises:
        ValueError: the tree has a value that JSON, and so a digest, cannot hold.
    """
    if node is not None and node.tag.rpartition(":")[2] in _FOREIGN_TAGS:
        raise ValueError(f"line {node.start_mark.line + 1}: {node.tag} is no kind of value of a run file")
    if not isinstance(node, yaml.CollectionNode):
        if node is not None and node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:
            raise ValueError(f"line {node.start_mark.line + 1}: a number of more than {MAX_DIGITS} digits")
        return 1
    if id(node) not in counts:
        counts[id(node)] = MAX_VALUES + 1
        parts = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
        counts[id(node)] = 1 + sum(_count_values(part, counts) for part in parts)
    return counts[id(node)]
