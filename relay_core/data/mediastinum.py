"""The data set `mediastinum`: tumours on CT as 16-bit slices with masks, and a table that lists them."""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from relay_core.config import MediastinumKwargs
from relay_core.data.pairs import Listing, Pair, Split
from relay_core.data.slices import Slice, SlicedLayout
from relay_core.errors import DataError, Problem
from relay_core.imaging import Spacing, read_mask

TABLE = "meta.txt"
COLUMNS = ("instance_id", "study_id", "img_file", "label_file", "positive")
AIR, BONE = -500.0, 150.0
"""An unlabelled pixel below `AIR` HU is air, and one above `BONE` HU is bone."""
_POSITIVE = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False}


class MediastinumLayout(SlicedLayout):
    """The layout of a folder whose `meta.txt` (CSV) names masks and 16-bit images, where value + `hu_min` is HU."""

    expected = f"{TABLE} (CSV: {', '.join(COLUMNS)}) with the files that it names; `relay prepare mediastinum` makes it"

    def list_pairs(self, folder: Path, kwargs: MediastinumKwargs, split: Split) -> Listing:
        """List the pairs of one split.

        Raises:
            DataError: if the table is missing or unreadable, or lacks a column.
        """
        problems: list[Problem] = []
        slices: dict[str, Slice] = {}
        for number, row in enumerate(_read_table(folder), start=2):
            try:
                parsed = _parse_row(row, folder, kwargs)
            except ValueError as error:
                problems.append(Problem(TABLE, f"row {number}: {error}"))
                continue
            if row["instance_id"] in slices:
                problems.append(Problem(TABLE, f"row {number}: instance_id {row['instance_id']} stands there twice"))
            slices[row["instance_id"]] = parsed
        return self.choose(list(slices.values()), problems, folder, kwargs, split)

    def class_of(self, value: int, kwargs: MediastinumKwargs) -> int | None:
        """Return the class id of tissue for 0 and of tumour for any value above; None for a negative value."""
        return (1 if value > 0 else 0) + kwargs.background_label if value >= 0 else None

    def hint(self, unknown: list[int], values: list[int], kwargs: MediastinumKwargs) -> str:
        """Return the mask values that are expected, for an error message."""
        return "expected 0 for tissue, above 0 for tumour"

    def read_image(self, path: Path, kwargs: MediastinumKwargs) -> tuple[npt.NDArray[Any], Spacing | None]:
        """Read a slice as HU, mapped by the window of the settings to 0..1: (C, H, W) float32; the spacing is None."""
        low, high = kwargs.hu_window
        windowed = np.clip((_read_hu(path, kwargs) - low) / (high - low), 0, 1).astype(np.float32)
        return np.ascontiguousarray(np.broadcast_to(windowed, (kwargs.img_channels, *windowed.shape))), None

    def refine(self, ids: npt.NDArray[np.uint8], pair: Pair, kwargs: MediastinumKwargs) -> npt.NDArray[np.uint8]:
        """Give unlabelled pixels of air and bone their own classes, where the settings have such classes; ids are (H, W)."""
        if not (kwargs.background_label or kwargs.bone_label):
            return ids
        hu, unlabelled, ids = _read_hu(pair.image, kwargs), ids == kwargs.background_label, ids.copy()
        if kwargs.background_label:
            ids[unlabelled & (hu < AIR)] = 0
        if kwargs.bone_label:
            ids[unlabelled & (hu > BONE)] = kwargs.num_classes - 1
        return ids


def _read_hu(path: Path, kwargs: MediastinumKwargs) -> npt.NDArray[np.float32]:
    values = read_mask(path)
    if values.dtype != np.uint16:
        message = "is not a 16-bit image: HU cannot be told from it; `relay prepare mediastinum` writes 16 bits"
        raise DataError("an image cannot be used", [Problem(path.name, message)])
    return values.astype(np.float32) + np.float32(kwargs.hu_min)


def _read_table(folder: Path) -> list[dict[str, str]]:
    try:
        lines = (folder / TABLE).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{folder} has no {TABLE}; expected {MediastinumLayout.expected}") from None
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{TABLE} of {folder.name} cannot be read as UTF-8 text") from None
    reader = csv.DictReader(lines, skipinitialspace=True)
    try:
        rows, names = list(reader), reader.fieldnames or ()
    except csv.Error as error:
        raise DataError(f"{TABLE} of {folder.name} cannot be read as CSV: {error}; is there a lone quote?") from None
    columns = [(name or "").strip() for name in names]
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise DataError(f"{TABLE} of {folder.name} lacks the columns {', '.join(missing)}; it has {', '.join(columns)}")
    return [{(k or "").strip(): v.strip() for k, v in row.items() if isinstance(v, str)} for row in rows]


def _parse_row(row: dict[str, str], folder: Path, kwargs: MediastinumKwargs) -> Slice:
    """Return the slice that one row of the table names. Raises ValueError that says what is wrong with the row."""
    for column in ("instance_id", "study_id", "img_file"):
        if not row.get(column):
            raise ValueError(f"{column} is empty")
    positive = _POSITIVE.get(row.get("positive", "").lower())
    if positive is None:
        raise ValueError(f"positive is {row.get('positive', '')!r}, not 0 or 1")
    image = _find_file(row["img_file"], folder)
    needs_mask = kwargs.task == "segmentation"
    if needs_mask and not row.get("label_file"):
        raise ValueError("label_file is empty")
    mask = _find_file(row["label_file"], folder) if needs_mask else None
    if row.get("hu_min") and row["hu_min"] != f"{kwargs.hu_min:g}":
        raise ValueError(f"its file's 0 is {row['hu_min']} HU, and dataset.kwargs.hu_min is {kwargs.hu_min:g}: set it alike")
    return Slice(Pair(image, mask, row["study_id"], spacing=_parse_spacing(row)), positive)


def _find_file(name: str, folder: Path) -> Path:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in name:
        raise ValueError(f"{name} leads out of the folder")
    path = folder / parts
    try:
        exists = path.is_file()
    except OSError:  # the name is too long for the file system
        exists = False
    if not exists:
        raise ValueError(f"there is no file {name[:100]}")
    return path


def _parse_spacing(row: dict[str, str]) -> Spacing | None:
    """Return mm of a pixel, row then column, or None without these columns (the published tables have none)."""
    values = [row.get(f"spacing_{axis}") for axis in ("row", "column")]
    if not all(values):
        return None
    try:
        row_mm, column_mm = (float(str(value)) for value in values)
    except ValueError:
        raise ValueError(f"spacing_row and spacing_column must be mm, not {values[0]} and {values[1]}") from None
    if not (0 < row_mm < 1000 and 0 < column_mm < 1000):
        raise ValueError(f"spacing_row and spacing_column must be mm above 0, not {row_mm:g} and {column_mm:g}")
    return row_mm, column_mm
