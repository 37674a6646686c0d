"""Mediastinum tumour on CT: 16-bit slices, masks, and a table of them."""

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
"""HU below and above which an unlabelled pixel is air or bone."""
_POSITIVE = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False}


class MediastinumLayout(SlicedLayout):
    """A folder with `meta.txt` (CSV) that names 16-bit images, where value + `hu_min` is HU, and their masks."""

    expected = f"{TABLE} (CSV: {', '.join(COLUMNS)}) with the files that it names; `relay prepare mediastinum` makes it"

    def list_pairs(self, folder: Path, kwargs: MediastinumKwargs, split: Split) -> Listing:
        """List one split.

        Raises:
            DataError: no table, or it lacks a column.
        """
        problems: list[Problem] = []
        slices: dict[str, Slice] = {}
        for number, row in enumerate(_rows(folder), start=2):
            try:
                found = _slice(row, folder, kwargs)
            except ValueError as error:
                problems.append(Problem(TABLE, f"row {number}: {error}"))
                continue
            if row["instance_id"] in slices:
                problems.append(Problem(TABLE, f"row {number}: instance_id {row['instance_id']} stands there twice"))
            slices[row["instance_id"]] = found
        return self.choose(list(slices.values()), problems, folder, kwargs, split)

    def class_of(self, value: int, kwargs: MediastinumKwargs) -> int | None:
        """Return tissue for 0, tumour for any label."""
        return (1 if value > 0 else 0) + kwargs.background_label if value >= 0 else None

    def hint(self, unknown: list[int], values: list[int], kwargs: MediastinumKwargs) -> str:
        """Say what the values mean."""
        return "expected 0 for tissue, above 0 for tumour"

    def read_image(self, path: Path, kwargs: MediastinumKwargs) -> tuple[npt.NDArray[Any], Spacing | None]:
        """HU, windowed to 0..1: (C, H, W) float32."""
        low, high = kwargs.hu_window
        shown = np.clip((_hu(path, kwargs) - low) / (high - low), 0, 1).astype(np.float32)
        return np.ascontiguousarray(np.broadcast_to(shown, (kwargs.img_channels, *shown.shape))), None

    def refine(self, ids: npt.NDArray[np.uint8], pair: Pair, kwargs: MediastinumKwargs) -> npt.NDArray[np.uint8]:
        """Give air and bone that are unlabelled their classes."""
        if not (kwargs.background_label or kwargs.bone_label):
            return ids
        hu, unlabelled, ids = _hu(pair.image, kwargs), ids == kwargs.background_label, ids.copy()
        if kwargs.background_label:
            ids[unlabelled & (hu < AIR)] = 0
        if kwargs.bone_label:
            ids[unlabelled & (hu > BONE)] = kwargs.num_classes - 1
        return ids


def _hu(path: Path, kwargs: MediastinumKwargs) -> npt.NDArray[np.float32]:
    values = read_mask(path)
    if values.dtype != np.uint16:
        message = "is not a 16-bit image: HU cannot be told from it; `relay prepare mediastinum` writes 16 bits"
        raise DataError("an image cannot be used", [Problem(path.name, message)])
    return values.astype(np.float32) + np.float32(kwargs.hu_min)


def _rows(folder: Path) -> list[dict[str, str]]:
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


def _slice(row: dict[str, str], folder: Path, kwargs: MediastinumKwargs) -> Slice:
    """One row of the table. Raises ValueError with what is wrong."""
    for column in ("instance_id", "study_id", "img_file"):
        if not row.get(column):
            raise ValueError(f"{column} is empty")
    positive = _POSITIVE.get(row.get("positive", "").lower())
    if positive is None:
        raise ValueError(f"positive is {row.get('positive', '')!r}, not 0 or 1")
    image = _file(row["img_file"], folder)
    needs_mask = kwargs.task == "segmentation"
    if needs_mask and not row.get("label_file"):
        raise ValueError("label_file is empty")
    mask = _file(row["label_file"], folder) if needs_mask else None
    if row.get("hu_min") and row["hu_min"] != f"{kwargs.hu_min:g}":
        raise ValueError(f"its file's 0 is {row['hu_min']} HU, and dataset.kwargs.hu_min is {kwargs.hu_min:g}: set it alike")
    return Slice(Pair(image, mask, row["study_id"], spacing=_spacing(row)), positive)


def _file(name: str, folder: Path) -> Path:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in name:
        raise ValueError(f"{name} leads out of the folder")
    path = folder / parts
    try:
        found = path.is_file()
    except OSError:  # no file has so long a name
        found = False
    if not found:
        raise ValueError(f"there is no file {name[:100]}")
    return path


def _spacing(row: dict[str, str]) -> Spacing | None:
    """mm of a pixel, in columns that the published tables do not have."""
    values = [row.get(f"spacing_{axis}") for axis in ("row", "column")]
    if not all(values):
        return None
    try:
        rows, columns = (float(str(value)) for value in values)
    except ValueError:
        raise ValueError(f"spacing_row and spacing_column must be mm, not {values[0]} and {values[1]}") from None
    if not (0 < rows < 1000 and 0 < columns < 1000):
        raise ValueError(f"spacing_row and spacing_column must be mm above 0, not {rows:g} and {columns:g}")
    return rows, columns
