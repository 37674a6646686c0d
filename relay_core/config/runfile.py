"""The run file: YAML to settings, merged site by site, with errors that say where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from relay_core.config.explain import Source, explain, suggestion
from relay_core.config.outside import outside_paths
from relay_core.config.reading import merge, read_file, read_text, recipes
from relay_core.config.site import SiteSettings
from relay_core.errors import RunFileError


@dataclass
class RunFile:
    """A run: its sites in order, and what the file says about each."""

    path: Path
    raw: dict[str, Any]
    sources: list[Source] = field(repr=False)
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """The folder that relative paths start from: the file's, or the current one for a recipe."""
        return Path() if self.path in recipes().values() else self.path.parent

    @property
    def task_ids(self) -> list[int]:
        """The sites to train, in order."""
        return list(self.raw["current_tasks"]["task_ids"])

    @property
    def all_ids(self) -> list[int]:
        """The sites whose test sets the file names."""
        return [entry["kwargs"]["task_id"] for entry in self.raw["all_tasks_datasets"]]

    def site(self, task_id: int) -> SiteSettings:
        """The settings of one site.

        Raises:
            RunFileError: the merged settings are not valid; the message names file, line and key.
        """
        merged = self._merged(task_id)
        try:
            return SiteSettings.model_validate(merged)
        except ValidationError as error:
            paths = self._paths(task_id)
            raise RunFileError(explain(error, merged, SiteSettings, self.sources, paths)) from None

    def sites(self) -> list[SiteSettings]:
        """The settings of the sites to train, in order."""
        return [self.site(i) for i in self.task_ids]

    @property
    def digest(self) -> str:
        """SHA-256 of what the sites share: no paths, no machine's own settings."""
        shared = [site.shared() for site in self.sites()]
        return hashlib.sha256(json.dumps(shared, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def resolved(self) -> dict[str, Any]:
        """The file's mapping with the overrides where they win: read again, it gives the same settings."""
        if not self.overrides:
            return self.raw
        tasks = self.raw["current_tasks"]
        confs = tasks.get("task_confs") or {}
        confs = {i: merge(confs.get(i) or {}, self.overrides) for i in self.all_ids}
        return {**self.raw, "current_tasks": {**tasks, "task_confs": confs}}

    def canonical(self) -> str:
        """`resolved` as YAML that extends nothing: parsed again, it gives the same settings and the same `digest`."""
        return yaml.safe_dump(self.resolved(), sort_keys=False)

    def outside_paths(self) -> list[str]:
        """`key.path: value` of every site's files and folders that are absolute or have a `..` part, each once."""
        found = (outside_paths(self.site(i)) for i in self.all_ids)
        return list(dict.fromkeys(f"{key}: {value}" for site in found for key, value in site))

    def _merged(self, task_id: int) -> dict[str, Any]:
        entry = next((e for e in self.raw["all_tasks_datasets"] if e["kwargs"]["task_id"] == task_id), None)
        if entry is None:
            known = ", ".join(map(str, self.all_ids))
            raise RunFileError(f"{self.path}: there is no site {task_id} in all_tasks_datasets (it has {known})")
        merged = merge(self.raw["common"], {"dataset": entry})
        merged = merge(merged, (self.raw["current_tasks"].get("task_confs") or {}).get(task_id) or {})
        return merge(merged, self.overrides)

    def _paths(self, task_id: int) -> list[tuple[tuple[str | int, ...], int]]:
        """Where the file may say a thing about a site, most specific first: (prefix, keys of the location to drop)."""
        index = self.all_ids.index(task_id)
        return [
            (("current_tasks", "task_confs", task_id), 0),
            (("all_tasks_datasets", index), 1),
            (("common",), 0),
        ]


def load_run(name: str | Path, overrides: Sequence[str] = ()) -> RunFile:
    """Read a run file, or a recipe of the package by its name.

    Args:
        name: path of a YAML file, or the name of a recipe.
        overrides: `key.path=value` lines that win over the file at every site; values are YAML.

    Raises:
        RunFileError: not readable, not YAML, an unknown key, a wrong type; the message names file, line and key.
    """
    path = Path(name)
    if not path.is_file() and str(name) in recipes():
        path = recipes()[str(name)]
    raw, sources = read_file(path)
    return _checked(RunFile(path, raw, sources, _parse_overrides(overrides)))


def parse_run(text: str, name: str = "run.yaml") -> RunFile:
    """Read a run file from text that came from outside, an upload; no file is opened but a recipe's.

    Args:
        text: YAML; `extends` names a recipe.
        name: a bare file name for messages; relative paths start from the current folder.

    Raises:
        RunFileError: as `load_run`, or it extends another thing than a recipe.
    """
    path = Path(name)
    raw, sources = read_text(text, path)
    return _checked(RunFile(path, raw, sources))


def _checked(run: RunFile) -> RunFile:
    _check_structure(run)
    _check_names(run)
    return run


def _check_names(run: RunFile) -> None:
    """Sites are told apart by their names, and write into folders of their own."""
    names: dict[str, int] = {}
    folders: dict[str, int] = {}
    for task_id in dict.fromkeys([*run.all_ids, *run.task_ids]):
        site = run.site(task_id)
        entry = run.raw["all_tasks_datasets"][run.all_ids.index(task_id)]["kwargs"]
        name = str(entry.get("task_name", f"site_{task_id}"))
        if names.setdefault(name, task_id) != task_id:
            raise RunFileError(f"{run.path}: sites {names[name]} and {task_id} have the same task_name {name!r}")
        folder = site.checkpoint.save.dir or f"task_{task_id}"
        if task_id in run.task_ids and folders.setdefault(folder, task_id) != task_id:
            raise RunFileError(f"{run.path}: sites {folders[folder]} and {task_id} would both write to {folder!r}")


def _parse_overrides(lines: Sequence[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for line in lines:
        key, sign, value = line.partition("=")
        if not sign or not key:
            raise RunFileError(f"--set {line}: write key.path=value, e.g. train.batch_size=8")
        try:
            nested: Any = yaml.safe_load(value)
        except yaml.YAMLError:
            raise RunFileError(f"--set {line}: the value is not valid YAML") from None
        for part in reversed(key.split(".")):
            nested = {part: nested}
        result = merge(result, nested)
    return result


def _check_structure(run: RunFile) -> None:
    """The outline that merging relies on."""
    raw, where = run.raw, run.sources[0].where
    for key, kind in (("common", dict), ("all_tasks_datasets", list), ("current_tasks", dict)):
        if not isinstance(raw.get(key), kind):
            word = {dict: "a mapping", list: "a list"}[kind]
            raise RunFileError(f"{where((key,))}: {key} is missing or not {word}")
    for i, entry in enumerate(raw["all_tasks_datasets"]):
        kwargs = entry.get("kwargs") if isinstance(entry, dict) else None
        if not isinstance(kwargs, dict) or not isinstance(kwargs.get("task_id"), int):
            spot = where(("all_tasks_datasets", i))
            raise RunFileError(f"{spot}: each entry of all_tasks_datasets is {{kwargs: {{task_id: 1, ...}}}}")
    if len(set(run.all_ids)) != len(run.all_ids):
        raise RunFileError(f"{where(('all_tasks_datasets',))}: a task_id stands twice in all_tasks_datasets")
    tasks = raw["current_tasks"]
    for key in tasks:
        if key not in ("task_ids", "task_confs"):
            spot = where(("current_tasks", key))
            raise RunFileError(f"{spot}: unknown key {key!r}{suggestion(str(key), ('task_ids', 'task_confs'))}")
    ids = tasks.get("task_ids")
    if not isinstance(ids, list) or not ids or not all(isinstance(i, int) for i in ids) or len(set(ids)) < len(ids):
        raise RunFileError(f"{where(('current_tasks', 'task_ids'))}: task_ids is the list of site numbers to train")
    confs = tasks.get("task_confs") or {}
    if not isinstance(confs, dict):
        raise RunFileError(f"{where(('current_tasks', 'task_confs'))}: task_confs maps a task_id to its settings")
    for key in confs:
        if key not in run.all_ids:
            raise RunFileError(f"{where(('current_tasks', 'task_confs', key))}: there is no site {key!r}")
