"""Read the run file: YAML to settings, merged site by site, with errors that name file and line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from relay_core.config.explain import Source, explain, suggestion
from relay_core.config.outside import outside_paths
from relay_core.config.published import translated
from relay_core.config.reading import merge, read_file, read_text, recipes
from relay_core.config.site import SiteSettings
from relay_core.errors import RunFileError


@dataclass
class RunFile:
    """A run file names the sites of a run in order, and holds what it says about each."""

    path: Path
    raw: dict[str, Any]
    sources: list[Source] = field(repr=False)
    overrides: dict[str, Any] = field(default_factory=dict)
    pretraining: bool = True
    """Whether networks may start from ImageNet weights; False leaves `pretrain` out of account."""

    @property
    def base(self) -> Path:
        """Return the folder that relative paths start from: the file's, or the current one for a recipe."""
        return Path() if self.path in recipes().values() else self.path.parent

    @property
    def task_ids(self) -> list[int]:
        """Return the numbers of the sites to train, in order."""
        return list(self.raw["current_tasks"]["task_ids"])

    @property
    def all_ids(self) -> list[int]:
        """Return the numbers of all sites that the file names a data set for."""
        return [entry["kwargs"]["task_id"] for entry in self.raw["all_tasks_datasets"]]

    def site(self, task_id: int) -> SiteSettings:
        """Return the settings of one site.

        Raises:
            RunFileError: there is no such site, or its merged settings are not valid; the message names file, line and key.
        """
        merged = _in_our_words(self._merged(task_id))
        try:
            settings = SiteSettings.model_validate(merged)
            settings._last = self._is_last(task_id)
            return settings if self.pretraining else settings.without_pretraining()
        except ValidationError as error:
            prefixes = self._prefixes(task_id)
            raise RunFileError(explain(error, merged, SiteSettings, self.sources, prefixes)) from None

    def _is_last(self, task_id: int) -> bool:
        """Whether the relay of this file ends at a site: the file trains all its sites, and this one last.

        Where it trains some of them, as the file of one site of a deployment does, nobody knows what follows.
        """
        order = self.task_ids
        return len(order) > 1 and set(order) == set(self.all_ids) and order[-1] == task_id

    def sites(self) -> list[SiteSettings]:
        """Return the settings of the sites to train, in order."""
        return [self.site(i) for i in self.task_ids]

    @property
    def digest(self) -> str:
        """Return the SHA-256 (hex) of the settings that the sites share, which have no paths and nothing of one machine."""
        shared = [site.shared() for site in self.sites()]
        return hashlib.sha256(json.dumps(shared, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def resolved(self) -> dict[str, Any]:
        """Return the file's mapping with the overrides merged in: read again, it gives the same settings."""
        if not self.overrides:
            return self.raw
        tasks = self.raw["current_tasks"]
        confs = tasks.get("task_confs") or {}
        confs = {i: merge(confs.get(i) or {}, self.overrides) for i in self.all_ids}
        return {**self.raw, "current_tasks": {**tasks, "task_confs": confs}}

    def canonical(self) -> str:
        """Return `resolved` as YAML that extends nothing: parsed again, it gives the same settings and the same `digest`."""
        return yaml.safe_dump(self.resolved(), sort_keys=False)

    def outside_paths(self) -> list[str]:
        """Return `key.path: value` of every site's files and folders that are absolute or have a `..` part, each once."""
        paths_by_site = (outside_paths(self.site(i)) for i in self.all_ids)
        return list(dict.fromkeys(f"{key}: {value}" for paths in paths_by_site for key, value in paths))

    def _merged(self, task_id: int) -> dict[str, Any]:
        """Merge the settings of one site: `common`, its data set entry, its `task_confs`, the overrides."""
        entry = next((e for e in self.raw["all_tasks_datasets"] if e["kwargs"]["task_id"] == task_id), None)
        if entry is None:
            site_numbers = ", ".join(map(str, self.all_ids))
            raise RunFileError(f"{self.path}: there is no site {task_id} in all_tasks_datasets (it has {site_numbers})")
        merged = merge(self.raw["common"], {"dataset": entry})
        merged = merge(merged, (self.raw["current_tasks"].get("task_confs") or {}).get(task_id) or {})
        return merge(merged, self.overrides)

    @property
    def notes(self) -> list[str]:
        """Return a line for each key of the published vocabulary that is read and has no meaning here, each once."""
        notes: list[str] = []
        for task_id in self.all_ids:
            _in_our_words(self._merged(task_id), notes.append)
        return list(dict.fromkeys(notes))

    def _prefixes(self, task_id: int) -> list[tuple[tuple[str | int, ...], int]]:
        """Return where the file may define a site's settings, most specific first, as the `prefixes` of `explain`."""
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
        RunFileError: the file is not readable or not YAML, has an unknown key or a wrong type, or two sites share a name or
            a folder; the message names file, line and key.
    """
    path = Path(name)
    if not path.is_file() and str(name) in recipes():
        path = recipes()[str(name)]
    raw, sources = read_file(path)
    return _check(RunFile(path, raw, sources, _parse_overrides(overrides)))


def parse_run(text: str, name: str = "run.yaml") -> RunFile:
    """Read a run file from text that came from outside, such as an upload; open no file but a recipe's.

    Args:
        text: YAML; `extends` names a recipe.
        name: a bare file name for messages; relative paths start from the current folder.

    Raises:
        RunFileError: as for `load_run`, or the text extends anything but a recipe.
    """
    path = Path(name)
    raw, sources = read_text(text, path)
    return _check(RunFile(path, raw, sources))


def _in_our_words(merged: dict[str, Any], note: Callable[[str], object] = lambda text: None) -> dict[str, Any]:
    """Return the settings of a site in our words; where they make no sense, as they are, for the settings to refuse."""
    try:
        return translated(merged, note)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return merged


def _check(run: RunFile) -> RunFile:
    _check_structure(run)
    _check_names(run)
    return run


def _check_names(run: RunFile) -> None:
    """Check that sites have different names and write to different folders. Raises RunFileError."""
    names: dict[str, int] = {}
    folders: dict[str, int] = {}
    for task_id in dict.fromkeys([*run.all_ids, *run.task_ids]):
        site = run.site(task_id)
        entry = run.raw["all_tasks_datasets"][run.all_ids.index(task_id)]["kwargs"]
        name = str(entry.get("task_name", f"site_{task_id}"))
        if names.setdefault(name, task_id) != task_id:
            raise RunFileError(f"{run.path}: sites {names[name]} and {task_id} have the same task_name {name!r}")
        for key in ("fit", "class_groups"):
            first, own = (getattr(s.data, key, None) for s in (run.site(run.all_ids[0]), site))
            if first != own:
                raise RunFileError(
                    f"{run.path}: dataset.kwargs.{key} is {own} at site {name} and {first} at the first; put it under "
                    "common: it is the same at all sites"
                )
        folder = site.checkpoint.save.dir or f"task_{task_id}"
        if task_id in run.task_ids and folders.setdefault(folder, task_id) != task_id:
            raise RunFileError(f"{run.path}: sites {folders[folder]} and {task_id} would both write to {folder!r}")


def _parse_overrides(lines: Sequence[str]) -> dict[str, Any]:
    """Turn `key.path=value` lines into one nested mapping; later lines win. Raises RunFileError."""
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
    """Check the outline that merging relies on. Raises RunFileError."""
    raw, where = run.raw, run.sources[0].where
    for key, kind in (("common", dict), ("all_tasks_datasets", list), ("current_tasks", dict)):
        if not isinstance(raw.get(key), kind):
            word = {dict: "a mapping", list: "a list"}[kind]
            raise RunFileError(f"{where((key,))}: {key} is missing or not {word}")
    for i, entry in enumerate(raw["all_tasks_datasets"]):
        kwargs = entry.get("kwargs") if isinstance(entry, dict) else None
        if not isinstance(kwargs, dict) or not isinstance(kwargs.get("task_id"), int):
            place = where(("all_tasks_datasets", i))
            raise RunFileError(f"{place}: each entry of all_tasks_datasets is {{kwargs: {{task_id: 1, ...}}}}")
    if len(set(run.all_ids)) != len(run.all_ids):
        raise RunFileError(f"{where(('all_tasks_datasets',))}: a task_id stands twice in all_tasks_datasets")
    tasks = raw["current_tasks"]
    for key in tasks:
        if key not in ("task_ids", "task_confs"):
            place = where(("current_tasks", key))
            raise RunFileError(f"{place}: unknown key {key!r}{suggestion(str(key), ('task_ids', 'task_confs'))}")
    ids = tasks.get("task_ids")
    if not isinstance(ids, list) or not ids or not all(isinstance(i, int) for i in ids) or len(set(ids)) < len(ids):
        raise RunFileError(f"{where(('current_tasks', 'task_ids'))}: task_ids is the list of site numbers to train")
    confs = tasks.get("task_confs") or {}
    if not isinstance(confs, dict):
        raise RunFileError(f"{where(('current_tasks', 'task_confs'))}: task_confs maps a task_id to its settings")
    for key in confs:
        if key not in run.all_ids:
            raise RunFileError(f"{where(('current_tasks', 'task_confs', key))}: there is no site {key!r}")
