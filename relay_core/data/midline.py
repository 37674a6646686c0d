"""The data set `midline`: the brain midline, one folder per study with `<slice>.jpg` and `mask_<slice>.png`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from relay_core.config import MidlineKwargs
from relay_core.data.pairs import Listing, Pair, Split, list_files, relative
from relay_core.data.slices import Slice, SlicedLayout
from relay_core.errors import DataError, Problem
from relay_core.imaging import read_image, read_mask

PREFIX = "mask_"
LARGEST_ID = 10
"""Mask ids from 1 up to this one are midline; larger ones are other structures, and count as brain."""
DARK = 10
"""Brightness on the scale 0..255 below which an unlabelled pixel lies outside the head."""


class MidlineLayout(SlicedLayout):
    """The layout `<study>/<slice>.jpg` (or PNG) with `<study>/mask_<slice>.png`."""

    expected = "<study>/<slice>.jpg with <study>/mask_<slice>.png; `relay prepare slices --layout midline` makes it"

    def list_pairs(self, folder: Path, kwargs: MidlineKwargs, split: Split) -> Listing:
        """List the pairs of one split.

        Raises:
            DataError: if the folder holds no study.
        """
        studies = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not studies:
            raise DataError(f"{folder} has no study; expected {self.expected}")
        problems: list[Problem] = []
        slices = [s for study in studies for s in self._list_study(study, folder, kwargs, problems)]

        @cache
        def positive(s: Slice) -> bool:
            assert s.pair.mask is not None
            try:
                return self._shows_midline(s.pair.mask, kwargs)
            except DataError as error:
                problems.extend(Problem(relative(s.pair.mask, folder), p.message) for p in error.problems)
                return False

        return self.choose(slices, problems, folder, kwargs, split, positive)

    def _list_study(self, study: Path, folder: Path, kwargs: MidlineKwargs, problems: list[Problem]) -> list[Slice]:
        files, unusable = list_files(study, folder)
        problems += unusable
        masks = {stem.removeprefix(PREFIX): path for stem, path in files.items() if stem.startswith(PREFIX)}
        images = {stem: path for stem, path in files.items() if not stem.startswith(PREFIX)}
        for stem in sorted(masks.keys() - images.keys()):
            problems.append(Problem(relative(masks[stem], folder), "is a mask without an image"))
        needs_mask = (
            kwargs.task == "segmentation" or kwargs.class_by == "positive" or kwargs.negatives_per_positive is not None
        )
        for stem in sorted(images.keys() - masks.keys()) if needs_mask else ():
            problems.append(Problem(relative(images[stem], folder), f"has no mask (a file {PREFIX}{stem}.png beside it)"))
        usable = [stem for stem in images if stem in masks or not needs_mask]
        return [Slice(Pair(images[stem], masks.get(stem), study.name), False) for stem in usable]

    def _shows_midline(self, mask: Path, kwargs: MidlineKwargs) -> bool:
        """Return whether any pixel is midline. Raises DataError if the mask is unreadable or has values without a class."""
        values = np.unique(read_mask(mask))
        unknown = [int(v) for v in values if self.class_of(int(v), kwargs) is None]
        if unknown:
            message = f"has unknown mask value {unknown[0]}; {self.hint(unknown, [], kwargs)}"
            raise DataError("a mask cannot be used", [Problem(mask.name, message)])
        return bool(((values >= 1) & (values <= LARGEST_ID)).any())

    def class_of(self, value: int, kwargs: MidlineKwargs) -> int | None:
        """Return the class id of midline for values 1 to 10, of brain for others; None for negative values and 255."""
        if value < 0 or value == 255:
            return None
        return (1 if 1 <= value <= LARGEST_ID else 0) + kwargs.background_label

    def hint(self, unknown: list[int], values: list[int], kwargs: MidlineKwargs) -> str:
        """Return how to write the midline in a mask, for an error message."""
        return f"the midline has an id from 1 to {LARGEST_ID}; write it as 1, not as 255"

    def refine(self, ids: npt.NDArray[np.uint8], pair: Pair, kwargs: MidlineKwargs) -> npt.NDArray[np.uint8]:
        """Make dark, unlabelled pixels class 0 (background) where the settings have that class; ids are (H, W)."""
        if not kwargs.background_label:
            return ids
        pixels = read_image(pair.image, 1)[0][0]
        dark = pixels < (DARK if pixels.dtype == np.uint8 else DARK / 255)
        return np.where(dark & (ids == 1), 0, ids).astype(np.uint8)
