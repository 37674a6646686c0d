"""Image and mask files that belong together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from relay_core.config.datasets import CommonDatasetKwargs
from relay_core.errors import DataError, Problem
from relay_core.imaging.readers import SUFFIXES, stem_of, suffix_of

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")

MAX_SHOWN = 50
"""So many problems stand in the text of an error; all are in its `problems`."""

_NOT_DATA = (".txt", ".csv", ".md", ".json", ".db", ".ini")


@dataclass(frozen=True)
class Pair:
    """An image, its mask, and whom they show."""

    image: Path
    mask: Path
    subject: str

    @property
    def name(self) -> str:
        """File stem of the image."""
        return stem_of(self.image)


@dataclass
class Listing:
    """Pairs of one split, sorted by name, and what was wrong while listing them."""

    pairs: list[Pair] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class Layout(Protocol):
    """How one kind of data set lies on disk."""

    expected: str
    """The layout in a few words, for messages."""

    def list_pairs(self, folder: Path, kwargs: CommonDatasetKwargs, split: Split) -> Listing:
        """List one split. Raises DataError where the layout as a whole is not there."""

    def class_of(self, value: int, kwargs: CommonDatasetKwargs) -> int | None:
        """Return the class id that a mask value means, None for a value that means nothing."""

    def hint(self, unknown: list[int], values: list[int], kwargs: CommonDatasetKwargs) -> str:
        """Say what to do about unknown mask values; `values` are all values of the mask."""


def data_error(message: str, problems: Iterable[Problem]) -> DataError:
    """Make an error whose text shows the first problems and which holds them all, each once."""
    every = tuple(dict.fromkeys(problems))
    error = DataError(message, every[:MAX_SHOWN])
    if len(every) > MAX_SHOWN:
        error = DataError(f"{error}\n  and {len(every) - MAX_SHOWN} more")
    error.problems = every
    return error


def relative(path: Path, folder: Path) -> str:
    """Return `path` as problems name it: below the site's folder, with forward slashes."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def list_files(directory: Path, folder: Path) -> tuple[dict[str, Path], list[Problem]]:
    """Return stem -> file of the images or masks in `directory`, sorted by name, and what does not belong there."""
    files: dict[str, Path] = {}
    problems: list[Problem] = []
    for path in sorted(directory.iterdir(), key=lambda p: p.name):
        if path.name.startswith(".") or path.suffix.lower() in _NOT_DATA:
            continue
        if path.is_dir():
            problems.append(Problem(relative(path, folder), "is a folder; files are read from one level only"))
        elif suffix_of(path) is None:
            message = f"is of an unsupported type; use {', '.join(SUFFIXES)}"
            problems.append(Problem(relative(path, folder), message))
        elif stem_of(path) in files:
            message = f"has the same stem as {files[stem_of(path)].name}; stems must differ"
            problems.append(Problem(relative(path, folder), message))
        else:
            files[stem_of(path)] = path
    return dict(sorted(files.items())), problems


def match(images: dict[str, Path], masks: dict[str, Path], folder: Path) -> list[Problem]:
    """Return a problem for each image without a mask and each mask without an image."""
    problems = [
        Problem(relative(path, folder), f"has no mask (a file named {stem}.* beside the other masks)")
        for stem, path in images.items()
        if stem not in masks
    ]
    return problems + [
        Problem(relative(path, folder), "is a mask without an image") for stem, path in masks.items() if stem not in images
    ]
