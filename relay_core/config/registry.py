"""What a run file may name: built in, from installed packages, or from modules that this machine allows.

Settings are known without torch; what they set up is named as text and imported by the process that trains.
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
    """One thing that a run file may name."""

    kwargs: type[Settings]
    """Its settings, what the run file has below `kwargs`."""
    make: str
    """`module:attribute` of what is set up: see `docs/extend.md` for what each kind of thing must be."""
    about: str = ""
    """One sentence for the catalogue; empty: the first line of the settings' docstring."""

    @property
    def summary(self) -> str:
        """`about`, or what the settings say."""
        return self.about or (self.kwargs.__doc__ or "").strip().splitlines()[0]


@dataclass(frozen=True)
class Registry(Mapping[str, Entry]):
    """Entries by name.

    `in` and iteration know what is built in and what installed packages add; `[...]` also finds `module:entry` in a module
    that the environment variable `RELAY_PLUGINS` lists.
    """

    kind: str
    """What one of them is called in a message."""
    group: str
    """Entry points of other packages: each is an `Entry`."""
    base: type[Settings]
    """What all settings derive from."""
    builtin: dict[str, Entry] = field(repr=False)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.builtin, *(point.name for point in metadata.entry_points(group=self.group))]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, name: str) -> Entry:
        """The entry called `name`. Raises KeyError; RunFileError where what it names cannot be used."""
        if name in self.builtin:
            return self.builtin[name]
        for point in metadata.entry_points(group=self.group, name=name):
            return self._checked(name, point.value, point.load)
        if ":" in name:
            return self._checked(name, name, lambda: self._named(name))
        raise KeyError(name)

    def load(self, name: str) -> Any:
        """What an entry sets up, imported. Raises as `[...]`; ImportError where what is built in lacks a package."""
        entry = self[name]
        if name in self.builtin:
            return attribute(entry.make)
        try:
            return attribute(entry.make)
        except Exception as error:  # of another package: anything
            raise RunFileError(f"the {self.kind} {name!r}: {entry.make} cannot be imported: {error}") from error

    def unknown(self, name: str) -> str:
        """What to say about a name that is not known."""
        return f"{name!r} is not known{suggestion(name, self)}; known: {', '.join(self)}"

    def _named(self, name: str) -> Any:
        allowed = [module.strip() for module in os.environ.get(ALLOWED, "").split(",") if module.strip()]
        if name.partition(":")[0] not in allowed:
            listed = ", ".join(allowed) or "none"
            raise RunFileError(f"{name!r} is in a module that is not allowed here: {ALLOWED} lists {listed}")
        return attribute(name)

    def _checked(self, name: str, where: str, load: Any) -> Entry:
        try:
            found = load()
        except RunFileError:
            raise
        except Exception as error:  # of another package: anything
            raise RunFileError(f"the {self.kind} {name!r} ({where}) cannot be loaded: {error}") from error
        if not isinstance(found, Entry) or not issubclass(found.kwargs, self.base):
            wanted = f"an Entry whose kwargs derive from {self.base.__name__}"
            raise RunFileError(f"the {self.kind} {name!r} ({where}) is not {wanted}; see docs/extend.md")
        return found


def attribute(path: str) -> Any:
    """Import `module:attribute`. Raises ImportError, AttributeError."""
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
    def _is_known(cls, name: str) -> str:
        settings_of(cls.registry, name)
        return name

    @field_validator("kwargs", mode="plain")
    @classmethod
    def _of_its_class(cls, value: Any, info: ValidationInfo) -> Settings:
        if "name" not in info.data:  # its own error is enough
            return Settings()
        return settings_of(cls.registry, info.data["name"]).model_validate(value)

    @classmethod
    def inner(cls, key: str, raw: dict[str, Any]) -> Any:
        """See `Settings.inner`: what stands below `kwargs` is said by the name."""
        default = cls.model_fields["name"].default
        return settings_of(cls.registry, raw.get("name", default)) if key == "kwargs" else super().inner(key, raw)

    @classmethod
    def of(cls, name: str, **kwargs: Any) -> Self:
        """For example `LossSettings.of("dice", smooth=0)`."""
        return cls(name=name, kwargs=kwargs)


def settings_of(registry: Registry, name: str) -> type[Settings]:
    """The settings class of an entry.

    Raises:
        ValueError: there is none, or it cannot be used; for a validator.
    """
    try:
        return registry[name].kwargs
    except KeyError:
        raise ValueError(registry.unknown(name)) from None
    except RunFileError as error:
        raise ValueError(str(error)) from None
