"""What is cut out of a study, and how it is coded: 16-bit HU for mediastinum tumours, 8 bits by a window for the rest.

Legend: S slices of a study, n of them kept, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

import numpy as np
import numpy.typing as npt

from relay_core.errors import DataError, Problem, RelayError
from relay_core.preparation.crop import Box, around, joined, lung_box
from relay_core.preparation.selection import Selection
from relay_core.preparation.volumes import Volume

Array = npt.NDArray[Any]

LAYOUTS = {
    "mediastinum": ("images/{study}_{slice:04d}.png", "labels/{study}_{slice:04d}.png"),
    "folder": ("image/{study}_{slice:04d}.png", "mask/{study}_{slice:04d}.png"),
    "midline": ("{study}/{slice:04d}.jpg", "{study}/mask_{slice:04d}.png"),
}
"""Where the image and the mask of a slice lie."""
AXES = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
"""Axes of an LPS volume (S, H, W) that become slices, rows and columns."""
SHOWN_HU = (-160.0, 240.0)
"""Window of the pictures in a report."""
HIGHEST_AIR = -300
"""HU that some voxel of a chest's CT lies below."""


@dataclass(frozen=True)
class Cut:
    """The kept slices of a study, and what to tell of it."""

    numbers: tuple[int, ...]
    """Of the slices in the volume, from 0."""
    pixels: Array
    """(n, H, W) uint8 or uint16."""
    masks: npt.NDArray[np.uint8] | None
    """(n, H, W)."""
    spacing: tuple[float, float, float] | None
    """Millimetres from slice to slice, row to row, column to column."""
    facts: dict[str, Any]
    """size, spacing, box, kept, of, labelled slices, ml, notes: see `report`."""
    shown: tuple[npt.NDArray[np.float32], Array | None, Box]
    """A whole slice in -1..1 (H, W), its labels, and the box, for a picture."""


@dataclass(frozen=True)
class Mediastinum:
    """Slices of a CT volume as in the published mediastinum tumour data: value + `hu_min` is HU, label 1 is tumour.

    Raises:
        RelayError: an option that cannot be used.
    """

    selection: Selection = field(default_factory=Selection)
    hu_min: int = -160
    """HU of the value 0; lower ones become it."""
    crop: bool = True
    """To the box of the lungs; tumour outside makes it larger."""
    margin: float = 10.0
    """Millimetres around the lungs."""
    intercept: float | None = None
    """Added to all values, where they are not HU."""
    layout: ClassVar[str] = "mediastinum"
    word: ClassVar[str] = "tumour"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise RelayError(f"--margin {self.margin:g}: give millimetres, 0 or more")

    @property
    def rescaled(self) -> bool:
        """Whether DICOM files must say how their values become HU."""
        return self.intercept is None

    def cut(self, study: str, volume: Volume) -> Cut:
        """Crop, choose, code. Raises DataError: not in HU, or no lungs."""
        assert volume.labels is not None
        values, tumour = volume.values, (volume.labels > 0).astype(np.uint8)
        if self.intercept is not None:
            values = values.astype(np.float32) + np.float32(self.intercept)
        if values.min() >= HIGHEST_AIR:
            smallest = f"its smallest value is {values.min():g}, so it is not in HU"
            _fail(study, f"has no air: {smallest}; --intercept -1024 adds that number to all values")
        box, notes = self._box(study, values, tumour, volume.spacing) if self.crop else (_whole(values), [])
        return _cut(values, tumour, volume.spacing, box, 1, self.selection, self._code, SHOWN_HU, notes)

    def _box(
        self, study: str, values: Array, tumour: Array, spacing: tuple[float, float, float] | None
    ) -> tuple[Box, list[str]]:
        found = lung_box(values, spacing or (1.0, 1.0, 1.0), self.margin)
        if found is None:
            _fail(study, "no lungs were found in it; --no-crop keeps whole slices")
        if not tumour.any():
            return found, []
        larger = joined(found, around(tumour))
        return larger, [] if larger == found else ["the crop was grown to hold all of the tumour"]

    def _code(self, values: Array) -> npt.NDArray[np.uint16]:
        return np.clip(np.rint(values.astype(np.float32)) - self.hu_min, 0, 65535).astype(np.uint16)


@dataclass(frozen=True)
class Slices:
    """Slices of any volume, 8 bits by a window.

    Raises:
        RelayError: an option that cannot be used.
    """

    selection: Selection = field(default_factory=lambda: Selection("all"))
    layout: str = "folder"
    """folder (the data set `folder`), or midline."""
    axis: str = "axial"
    """axial, coronal or sagittal; slices stand as they are looked at, the head or the front up, the right side left."""
    window: tuple[float, float] | None = None
    """Values that become black and white; None: the 0.5 and 99.5 percentile of the volume."""
    every: int = 1
    """Only each so-many-th slice is looked at."""
    rescaled: ClassVar[bool] = False
    word: ClassVar[str] = "labelled"

    def __post_init__(self) -> None:
        for name, value, known in (("layout", self.layout, ("folder", "midline")), ("axis", self.axis, AXES)):
            if value not in known:
                raise RelayError(f"--{name} {value}: choose {' or '.join(known)}")
        if self.window is not None and not (all(map(math.isfinite, self.window)) and self.window[0] < self.window[1]):
            raise RelayError("--window: give LOW,HIGH, two numbers, the smaller first")
        if self.every < 1:
            raise RelayError(f"--every {self.every}: give 1 or more")

    def cut(self, study: str, volume: Volume) -> Cut:
        """Turn, choose, code. Raises DataError: labels that a mask cannot hold."""
        notes: list[str] = []
        low, high = self.window or (float(x) for x in np.percentile(volume.values, (0.5, 99.5)))
        if not low < high:
            high = low + 1
            notes.append("it has one value almost everywhere")
        labels = volume.labels
        if labels is not None and self.layout == "midline":
            labels = (labels > 0).astype(np.uint8)
        elif labels is not None and labels.max() > 255:
            _fail(study, f"has the label value {labels.max()}; a mask holds 0 to 255, so renumber the labels")
        values, axes = self._turned(volume.values), AXES[self.axis]
        spacing = None if volume.spacing is None else tuple(volume.spacing[axis] for axis in axes)
        selection = self.selection if labels is not None else Selection("all")
        turned = None if labels is None else self._turned(labels)

        def code(part: Array) -> npt.NDArray[np.uint8]:
            return np.rint(np.clip((part.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)

        return _cut(values, turned, spacing, _whole(values), self.every, selection, code, (low, high), notes)

    def _turned(self, values: Array) -> Array:
        """The volume with this axis first; the others' slices stand on the feet, which come first in LPS."""
        turned = values.transpose(AXES[self.axis])
        return turned if self.axis == "axial" else turned[:, ::-1]


def _cut(
    values: Array, labels: Array | None, spacing: Any, box: Box, every: int, selection: Selection,
    code: Callable[[Array], Array], window: tuple[float, float], notes: list[str],
) -> Cut:  # fmt: skip
    (first, last), rows, columns = box
    inside = slice(*rows), slice(*columns)
    numbers = range(first, last, every)
    areas = [0 if labels is None else int(np.count_nonzero(labels[number][inside])) for number in numbers]
    kept = [numbers[i] for i in selection.choose(areas)]
    if labels is not None and not any(areas):
        notes.append("nothing is labelled" + ("" if kept else "; --negatives keeps slices of it"))
    if spacing is None:
        notes.append("its spacing is not known")
    voxel = None if spacing is None else math.prod(spacing)
    facts = {
        "size": list(values.shape), "spacing": spacing, "box": box if box != _whole(values) else None, "kept": len(kept),
        "of": len(numbers), "labelled": None if labels is None else sum(area > 0 for area in areas),
        "ml": None if labels is None or voxel is None else round(int(np.count_nonzero(labels)) * voxel / 1000, 2),
        "notes": notes,
    }  # fmt: skip
    most = numbers[int(np.argmax(areas))] if any(areas) else numbers[len(numbers) // 2]
    low, high = window
    picture = np.clip((values[most].astype(np.float32) - low) / (high - low), 0, 1) * 2 - 1
    shown = picture, None if labels is None else labels[most], box
    pixels = np.stack([code(values[number][inside]) for number in kept]) if kept else np.empty((0, 0, 0), np.uint8)
    masks = None if labels is None else np.array([labels[number][inside] for number in kept], np.uint8)
    return Cut(tuple(kept), pixels, masks, spacing, facts, shown)


def _whole(values: Array) -> Box:
    slices, rows, columns = values.shape
    return (0, slices), (0, rows), (0, columns)


def _fail(study: str, message: str) -> NoReturn:
    raise DataError("a study cannot be prepared", [Problem(study, message)])
