"""Define the base of every settings class."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen, and strict about names: an unknown key is an error. A string under a field documents it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    @classmethod
    def inner(cls, key: str, raw: dict[str, Any]) -> Any:
        """Return the type of what stands below `key`, given the mapping `raw` that it stands in; None for an unknown key."""
        return cls.model_fields[key].annotation if key in cls.model_fields else None
