"""Image and mask files that belong together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from relay_core.errors import DataError, Problem
from relay_core.imaging import SUFFIXES, Spacing, read_image, stem_of, suffix_of

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")

MAX_SHOWN = 50
"""So many problems stand in the text of an error; all are in its `problems`."""

_NOT_DATA = (".txt", ".csv", ".md", ".json", ".db", ".ini")


@dataclass(frozen=True)
class Pair:
    """An image, its mask or its class, and whom they show."""

    image: Path
    mask: Path | None
    """None where a class of the whole image is learned and there is no mask."""
    subject: str
    label: int | None = None
    """Class of the whole image, for classification."""
    spacing: Spacing | None = None
    """mm of a pixel, row then column, where a table says it and not the file."""

    @property
    def name(self) -> str:
        """File stem of the image."""
        return stem_of(self.image)


@dataclass
class Listing:
    """Pairs of one split, sorted by name, and what was wrong while listing them."""

    pairs: list[Pair] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class Layout(ABC):
    """How one kind of data set lies on disk. `kwargs` are always of the data set's own settings class."""

    expected: ClassVar[str]
    """The layout in a few words, for messages."""

    @abstractmethod
    def list_pairs(self, folder: Path, kwargs: Any, split: Split) -> Listing:
        """List one split. Raises DataError where the layout as a whole is not there."""

    @abstractmethod
    def class_of(self, value: int, kwargs: Any) -> int | None:
        """Return the class id that a mask value means, None for a value that means nothing."""

    @abstractmethod
    def hint(self, unknown: list[int], values: list[int], kwargs: Any) -> str:
        """Say what to do about unknown mask values; `values` are all values of the mask."""

    def has_test(self, folder: Path, kwargs: Any) -> bool:
        """Whether there are test images, as far as the settings say."""
        return True

    def read_image(self, path: Path, kwargs: Any) -> tuple[npt.NDArray[Any], Spacing | None]:
        """Read an image as `imaging.readers.read_image` gives it: (C, H, W), uint8 or float32 in 0..1, and the spacing."""
        channels: int = kwargs.img_channels
        return read_image(path, channels)

    def refine(self, ids: npt.NDArray[np.uint8], pair: Pair, kwargs: Any) -> npt.NDArray[np.uint8]:
        """Class ids (H, W) of a pair whose mask alone does not say everything."""
        return ids


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
