"""Text that others wrote, such as names of sites and files: what a name may be, and how it stands in tables and reports."""

from __future__ import annotations

import csv
import html
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

SITE_NAME = "letters of any language, digits, space and - _ . ( ), at most 100 of them; it begins with a letter or a digit"
"""What the name of a site is made of."""
LONGEST_NAME = 100
_BETWEEN = frozenset(" -_.()")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", *"\uff1d\uff0b\uff0d\uff20")  # the last four: full-width = + - @
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LIST = "|".join(rf"(?<=^[0-9]{{{digits}}})[.)]" for digits in range(1, 10))
_MARKDOWN = re.compile(rf"[\\`*{{}}\[\]|~$!#@]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.|^[-+=]|{_LIST}")


def site_name(text: str) -> str:
    """Return the name of a site as it is kept: composed (NFC), so that it is the same name wherever it was typed.

    Raises:
        ValueError: it holds something else than `SITE_NAME` says; the message names the first wrong character.
    """
    name = unicodedata.normalize("NFC", text)
    for place, character in enumerate(name):
        before = unicodedata.category(name[place - 1])[0] if place else ""
        kind = unicodedata.category(character)
        is_mark_of_letter = kind[0] == "M" and before in ("L", "M")
        if not (kind[0] == "L" or kind == "Nd" or is_mark_of_letter or (place and character in _BETWEEN)):
            raise ValueError(f"a site's name has {SITE_NAME}; this one has {character!r} (U+{ord(character):04X})")
    if not 1 <= len(name) <= LONGEST_NAME or name != name.strip():
        raise ValueError(f"a site's name has {SITE_NAME}; this one has {len(name)}, or ends in a space")
    return name


def csv_table(rows: Iterable[Sequence[Any]], end: str = "\n") -> str:
    """Return rows as CSV text with lines that end in `end`; no cell is a formula to a spreadsheet that opens it.

    A text that begins as formulas do gets an apostrophe before it, which spreadsheets take for "this is text". Numbers,
    negative ones and numbers written as text included, stay as they are.
    """
    return "".join(_line(row) + end for row in rows)


def _line(row: Sequence[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow([_cell(value) for value in row])  # quotes what holds either of them
    return out.getvalue().removesuffix("\r\n")


def _cell(value: Any) -> Any:
    is_formula = isinstance(value, str) and value.startswith(_FORMULA) and not _NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value


def markdown(text: str) -> str:
    """Return one line of Markdown that is read as this text: whatever it holds, it is no markup, link, image or HTML."""
    printable = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return html.escape(_MARKDOWN.sub(lambda found: f"\\{found[0]}", printable), quote=False)
