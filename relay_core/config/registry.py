"""Register what a run file may name: built in, from installed packages, or from modules that this machine allows.

Settings are loaded without torch; what they set up is named as text, and the process that trains imports it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module, metadata
from typing import Any, ClassVar, Self

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator

from relay_core.config.base import Settings
from relay_core.config.explain import suggestion
from relay_core.errors import RunFileError

ALLOWED = "RELAY_PLUGINS"
"""Environment variable: the modules, separated by commas, that a run file may name as `module:entry`."""


@dataclass(frozen=True)
class Entry:
    """An entry is one thing that a run file may name: a data set, a network, a loss or a strategy."""

    kwargs: type[Settings]
    """Class of its settings, which the run file has below `kwargs`."""
    make: str
    """`module:attribute` of what the settings set up; `docs/extend.md` says what each kind of entry must be."""
    about: str = ""
    """One sentence for the catalogue; empty: the first line of the settings' docstring."""

    @property
    def summary(self) -> str:
        """Return `about`, or the first line of the settings' docstring."""
        return self.about or (self.kwargs.__doc__ or "").strip().splitlines()[0]


@dataclass(frozen=True)
class Registry(Mapping[str, Entry]):
    """A registry maps names to entries of one kind.

    `in` and iteration cover what is built in and what installed packages add; `[...]` also finds `module:entry` in a module
    that the environment variable `RELAY_PLUGINS` lists.
    """

    kind: str
    """Word for an entry in messages, such as `loss`."""
    group: str
    """Group of the entry points by which other packages add entries; each entry point is an `Entry`."""
    base: type[Settings]
    """Class that the settings of every entry derive from."""
    builtin: dict[str, Entry] = field(repr=False)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.builtin, *(point.name for point in metadata.entry_points(group=self.group))]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, name: str) -> Entry:
        """Return the entry called `name`.

        Raises:
            KeyError: there is none.
            RunFileError: another package's entry cannot be loaded, is not allowed here, or is not an `Entry`.
        """
        if name in self.builtin:
            return self.builtin[name]
        for point in metadata.entry_points(group=self.group, name=name):
            return self._load_entry(name, point.value, point.load)
        if ":" in name:
            return self._load_entry(name, name, lambda: self._load_allowed(name))
        raise KeyError(name)

    def load(self, name: str) -> Any:
        """Import and return what an entry sets up.

        Raises:
            KeyError, RunFileError: as for `[...]`; RunFileError also where another package's code cannot be imported.
            ImportError: what is built in lacks a package.
        """
        entry = self[name]
        if name in self.builtin:
            return attribute(entry.make)
        try:
            return attribute(entry.make)
        except Exception as error:  # another package may raise anything
            raise RunFileError(f"the {self.kind} {name!r}: {entry.make} cannot be imported: {error}") from error

    def unknown(self, name: str) -> str:
        """Return the message for a name that is not known."""
        return f"{name!r} is not known{suggestion(name, self)}; known: {', '.join(self)}"

    def _load_allowed(self, name: str) -> Any:
        """Import `module:attribute`. Raises RunFileError where the module is not listed in `RELAY_PLUGINS`."""
        allowed = [module.strip() for module in os.environ.get(ALLOWED, "").split(",") if module.strip()]
        if name.partition(":")[0] not in allowed:
            listed = ", ".join(allowed) or "none"
            raise RunFileError(f"{name!r} is in a module that is not allowed here: {ALLOWED} lists {listed}")
        return attribute(name)

    def _load_entry(self, name: str, where: str, load: Any) -> Entry:
        """Return what `load` returns. Raises RunFileError where it fails, or returns no entry of this registry."""
        try:
            entry = load()
        except RunFileError:
            raise
        except Exception as error:  # another package may raise anything
            raise RunFileError(f"the {self.kind} {name!r} ({where}) cannot be loaded: {error}") from error
        if not isinstance(entry, Entry) or not issubclass(entry.kwargs, self.base):
            wanted = f"an Entry whose kwargs derive from {self.base.__name__}"
            raise RunFileError(f"the {self.kind} {name!r} ({where}) is not {wanted}; see docs/extend.md")
        return entry


def attribute(path: str) -> Any:
    """Import `module:attribute` and return the attribute. Raises ImportError, AttributeError."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


class Choice(Settings):
    """A thing of a registry by name, with its settings."""

    registry: ClassVar[Registry]

    name: str
    """Which."""
    kwargs: SerializeAsAny[Settings] = Field(default_factory=dict, validate_default=True)
    """Its settings."""

    @field_validator("name")
    @classmethod
    def _name_is_registered(cls, name: str) -> str:
        settings_of(cls.registry, name)
        return name

    @field_validator("kwargs", mode="plain")
    @classmethod
    def _validate_kwargs(cls, value: Any, info: ValidationInfo) -> Settings:
        if "name" not in info.data:  # the error of `name` is enough
            return Settings()
        return settings_of(cls.registry, info.data["name"]).model_validate(value)

    @classmethod
    def inner(cls, key: str, raw: dict[str, Any]) -> Any:
        """See `Settings.inner`: `name` decides on the class of what stands below `kwargs`."""
        default = cls.model_fields["name"].default
        return settings_of(cls.registry, raw.get("name", default)) if key == "kwargs" else super().inner(key, raw)

    @classmethod
    def of(cls, name: str, **kwargs: Any) -> Self:
        """Return the choice of `name` with the settings `kwargs`, for example `LossSettings.of("dice", smooth=0)`."""
        return cls(name=name, kwargs=kwargs)


def settings_of(registry: Registry, name: str) -> type[Settings]:
    """Return the settings class of an entry, for a pydantic validator.

    Raises:
        ValueError: there is no such entry, or it cannot be used.
    """
    try:
        return registry[name].kwargs
    except KeyError:
        raise ValueError(registry.unknown(name)) from None
    except RunFileError as error:
        raise ValueError(str(error)) from None
