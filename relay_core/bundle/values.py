"""Checks which texts and numbers a bundle may hold: they end up on terminals, in file names and in databases.

Fingerprints and times are written here as people read them. Nothing here needs cryptography.
"""

from __future__ import annotations

import re
import time

LARGEST = 1 << 53
"""Every program reads numbers below this limit alike, since a double holds each such integer exactly."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9A-Za-z.+-]{1,40})?")
_METRIC = re.compile(r"[a-z][a-z0-9_]{0,60}")

MIN_COUNT = 5
"""Fewest patients, or images, behind a number that leaves the site."""


def is_digest(value: object) -> bool:
    """Return whether a value is a SHA-256 digest in lower-case hexadecimal."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def spoken_fingerprint(value: str) -> str:
    """Return the first 128 bits of a fingerprint as eight groups of four hexadecimal digits, to be read aloud."""
    return " ".join(value[i : i + 4] for i in range(0, 32, 4))


def day(seconds: float) -> str:
    """Return a time in Unix seconds as people read it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def is_name(value: object) -> bool:
    """Return whether a value is a valid name, of a site or a test set: one printable line of 1 to 200 characters.

    Text that is not printable could act as a command on a terminal.
    """
    return isinstance(value, str) and 1 <= len(value) <= 200 and value.isprintable()


def is_version(value: object) -> bool:
    """Return whether a value is a version number of relay, such as `0.1.0`."""
    return isinstance(value, str) and _VERSION.fullmatch(value) is not None


def is_count(value: object) -> bool:
    """Return whether a value is a count: an integer from 0 to below `LARGEST`."""
    return type(value) is int and 0 <= value < LARGEST


def is_number(value: object) -> bool:
    """Return whether a value is a number between -`LARGEST` and `LARGEST`, not NaN and not a boolean."""
    return isinstance(value, int | float) and type(value) is not bool and -LARGEST < value < LARGEST


def is_moment(value: object) -> bool:
    """Return whether a value is a time in Unix seconds, from 0 to below 2^36, which calendars have a date for."""
    return isinstance(value, int | float) and type(value) is not bool and 0 <= value < 1 << 36


def are_metrics(value: object) -> bool:
    """Return whether a value maps test set -> metric -> mean, and so holds nothing about single patients."""
    return isinstance(value, dict) and all(
        is_name(name) and isinstance(row, dict) and all(is_mean(key, mean) for key, mean in row.items())
        for name, row in value.items()
    )


def is_mean(key: str, value: object) -> bool:
    """Return whether a metric's name and value may stand in a bundle: a number or None; `px` or `mm` for `hd95_unit`."""
    if key == "hd95_unit":
        return value in ("px", "mm")
    return _METRIC.fullmatch(key) is not None and (value is None or is_number(value))
