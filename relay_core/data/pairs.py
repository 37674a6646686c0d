"""Pair the image and mask files that belong together, and define what a folder layout must implement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from relay_core.errors import DataError, Problem
from relay_core.imaging import SUFFIXES, Spacing, is_litter, one_form, read_image, read_mask, stem_of, suffix_of

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")

MAX_SHOWN = 50
"""Most problems that the text of an error lists; the error's `problems` holds all of them."""

_NOT_DATA = (".txt", ".csv", ".md", ".json", ".db", ".ini")


@dataclass(frozen=True)
class Pair:
    """An image, its mask or its class, and the patient that they show."""

    image: Path
    mask: Path | None
    """File of the mask; None where a class of the whole image is learned and there is no mask."""
    subject: str
    label: int | None = None
    """Class id of the whole image for classification; None for segmentation."""
    spacing: Spacing | None = None
    """Millimetres of a pixel, row then column, where a table gives them rather than the image file."""
    slice: int | None = None
    """Number of the slice, where image and mask are volumes."""

    @property
    def name(self) -> str:
        """The file stem of the image, with the number of the slice where there is one."""
        return stem_of(self.image) if self.slice is None else f"{stem_of(self.image)}-{self.slice:04d}"

    def shown(self, folder: Path) -> str:
        """The image as problems and reports name it: relative to the site's folder, with its slice."""
        name = relative(self.image, folder)
        return name if self.slice is None else f"{name}, slice {self.slice}"


@dataclass
class Listing:
    """The pairs of one split, in the order of the data set, and the problems that listing them found."""

    pairs: list[Pair] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class Layout(ABC):
    """The way in which one kind of data set lies on disk; `kwargs` are always of the data set's own settings class."""

    expected: ClassVar[str]
    """A short description of the layout, for error messages."""

    @abstractmethod
    def list_pairs(self, folder: Path, kwargs: Any, split: Split) -> Listing:
        """List the pairs of one split. Raises DataError if the folder does not have this layout at all."""

    @abstractmethod
    def class_of(self, value: int, kwargs: Any) -> int | None:
        """Return the class id of a mask value, or None for a value that has no class."""

    @abstractmethod
    def hint(self, unknown: list[int], values: list[int], kwargs: Any) -> str:
        """Return what to do about the unknown mask values, for an error message; `values` are all values of the mask."""

    def has_test(self, folder: Path, kwargs: Any) -> bool:
        """Return whether there are test images, as far as the settings and folders tell."""
        return True

    def read_image(self, path: Path, kwargs: Any) -> tuple[npt.NDArray[Any], Spacing | None]:
        """Read an image as `imaging.readers.read_image` gives it: (C, H, W), uint8 or float32 in 0..1, and the spacing."""
        channels: int = kwargs.img_channels
        return read_image(path, channels)

    def read_pair_image(self, pair: Pair, kwargs: Any) -> tuple[npt.NDArray[Any], Spacing | None]:
        """Read the image of a pair; a layout overrides this where a file holds more than one image."""
        return self.read_image(pair.image, kwargs)

    def read_pair_mask(self, pair: Pair, kwargs: Any) -> npt.NDArray[Any]:
        """Read the mask of a pair as `imaging.readers.read_mask` gives it: (H, W), values as they stand in the file."""
        assert pair.mask is not None
        return read_mask(pair.mask, pair.image)

    def refine(self, ids: npt.NDArray[np.uint8], pair: Pair, kwargs: Any) -> npt.NDArray[np.uint8]:
        """Return the final class ids (H, W) of a pair; a layout overrides this where the mask alone does not decide them."""
        return ids


def data_error(message: str, problems: Iterable[Problem]) -> DataError:
    """Make an error that holds every problem once and whose text shows the first `MAX_SHOWN` of them."""
    unique = tuple(dict.fromkeys(problems))
    error = DataError(message, unique[:MAX_SHOWN])
    if len(unique) > MAX_SHOWN:
        error = DataError(f"{error}\n  and {len(unique) - MAX_SHOWN} more")
    error.problems = unique
    return error


def relative(path: Path, folder: Path) -> str:
    """Return `path` relative to the site's folder with forward slashes, as problems name it; outside it the bare name."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def list_files(directory: Path, folder: Path) -> tuple[dict[str, Path], list[Problem]]:
    """Return stem -> file of the images or masks in `directory`, sorted by stem, and a problem for each unsuitable file."""
    files: dict[str, Path] = {}
    problems: list[Problem] = []
    for path in sorted(directory.iterdir(), key=lambda p: p.name):
        if path.name.startswith(".") or is_litter(path.name) or path.suffix.lower() in _NOT_DATA:
            continue
        if path.is_dir():
            problems.append(Problem(relative(path, folder), "is a folder; files are read from one level only"))
        elif suffix_of(path) is None:
            message = f"is of an unsupported type; use {', '.join(SUFFIXES)}"
            problems.append(Problem(relative(path, folder), message))
        elif (stem := one_form(stem_of(path))) in files:
            message = f"has the same stem as {files[stem].name}; stems must differ"
            problems.append(Problem(relative(path, folder), message))
        else:
            files[stem] = path
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
