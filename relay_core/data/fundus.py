"""The data set `fundus`: optic disc and cup in DoFE's folder layout."""

from __future__ import annotations

from pathlib import Path

from relay_core.config import CommonDatasetKwargs
from relay_core.data.pairs import Layout, Listing, Pair, Split, list_files, match
from relay_core.errors import DataError

_CLASS_OF_GREY = {255: 0, 128: 1, 0: 2}
_TOLERANCE = 16  # JPEG or a resize moves mask values a little away from the three


class FundusLayout(Layout):
    """The layout `{train,test}/ROIs/{image,mask}`, or the same without `ROIs`; masks: 255 background, 128 disc, 0 cup."""

    expected = "{train,test}/ROIs/{image,mask}/*.png (or the same without ROIs)"

    def list_pairs(self, folder: Path, kwargs: CommonDatasetKwargs, split: Split) -> Listing:
        """List the pairs of one split.

        Raises:
            DataError: if the folder of the images or of the masks is missing.
        """
        base = next((b for b in (folder / split / "ROIs", folder / split) if (b / "image").is_dir()), None)
        if base is None or not (base / "mask").is_dir():
            missing = f"{split}/ROIs/image" if base is None else (base / "mask").relative_to(folder).as_posix()
            raise DataError(f"{folder} has no folder {missing}; expected {self.expected}")
        images, image_problems = list_files(base / "image", folder)
        masks, mask_problems = list_files(base / "mask", folder)
        pairs = [Pair(path, masks[stem], stem) for stem, path in images.items() if stem in masks]
        return Listing(pairs, image_problems + mask_problems + match(images, masks, folder))

    def class_of(self, value: int, kwargs: CommonDatasetKwargs) -> int | None:
        """Return 0 background, 1 disc, 2 cup; None for a grey value more than 16 from 255, 128 and 0."""
        return next((c for grey, c in _CLASS_OF_GREY.items() if abs(value - grey) <= _TOLERANCE), None)

    def hint(self, unknown: list[int], values: list[int], kwargs: CommonDatasetKwargs) -> str:
        """Return the mask values that are expected, for an error message."""
        return "expected 255 background, 128 disc, 0 cup"
