"""Which texts and numbers may stand in a bundle: they end up on terminals, in file names, in databases."""

from __future__ import annotations

import re

LARGEST = 1 << 53
"""Below it every program reads the same number."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9A-Za-z.+-]{1,40})?")
_METRIC = re.compile(r"[a-z][a-z0-9_]{0,60}")


def is_digest(value: object) -> bool:
    """A SHA-256, hexadecimal."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def is_name(value: object) -> bool:
    """A site's, a test set's: one line that no terminal takes for a command."""
    return isinstance(value, str) and 1 <= len(value) <= 200 and value.isprintable()


def is_version(value: object) -> bool:
    """One of relay's."""
    return isinstance(value, str) and _VERSION.fullmatch(value) is not None


def is_count(value: object) -> bool:
    """How many there are of something."""
    return type(value) is int and 0 <= value < LARGEST


def is_number(value: object) -> bool:
    """A measured value."""
    return isinstance(value, int | float) and type(value) is not bool and -LARGEST < value < LARGEST


def is_moment(value: object) -> bool:
    """Unix seconds that a calendar has a date for."""
    return isinstance(value, int | float) and type(value) is not bool and 0 <= value < 1 << 36


def are_metrics(value: object) -> bool:
    """Test set -> metric -> mean, nothing about single patients."""
    return isinstance(value, dict) and all(
        is_name(name) and isinstance(row, dict) and all(is_mean(key, mean) for key, mean in row.items())
        for name, row in value.items()
    )


def is_mean(key: str, value: object) -> bool:
    """One value of a test set; the one text is `hd95_unit`."""
    if key == "hd95_unit":
        return value in ("px", "mm")
    return _METRIC.fullmatch(key) is not None and (value is None or is_number(value))
