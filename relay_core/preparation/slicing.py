"""Cut slices out of a study and code their values: 16-bit HU for mediastinum tumours, 8 bits by a window otherwise.

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
"""Layout -> file name patterns of the image and the mask of a slice, relative to the hospital's folder."""
AXES = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
"""Direction of cutting -> axes of an LPS volume (S, H, W) that become slices, rows and columns."""
SHOWN_HU = (-160.0, 240.0)
"""Window of the pictures in a report: the HU that become black and white."""
HIGHEST_AIR = -300
"""HU that the smallest value of a chest CT must lie below; otherwise the values are not HU."""


@dataclass(frozen=True)
class Cut:
    """The kept slices of a study, and the facts that the report shows."""

    numbers: tuple[int, ...]
    """Numbers of the kept slices in the volume, from 0."""
    pixels: Array
    """Coded pixels (n, H, W), uint8 or uint16."""
    masks: npt.NDArray[np.uint8] | None
    """Class ids (n, H, W); None: there are no labels."""
    spacing: tuple[float, float, float] | None
    """Millimetres from slice to slice, row to row, column to column; None where they are not known."""
    facts: dict[str, Any]
    """Facts for the report: size, spacing, box, kept, of (slices cut), labelled (slices), ml (labelled volume), notes."""
    shown: tuple[npt.NDArray[np.float32], Array | None, Box]
    """The slice with the largest labelled area for a picture: pixels (H, W) in -1..1, its labels, and the crop's box."""


@dataclass(frozen=True)
class Mediastinum:
    """Slices of a CT volume as in the published mediastinum tumour data: value + `hu_min` is HU, label 1 is tumour.

    Raises:
        RelayError: if an option cannot be used.
    """

    selection: Selection = field(default_factory=Selection)
    hu_min: int = -160
    """HU that the value 0 stands for; lower HU are clipped to it."""
    crop: bool = True
    """Whether to crop to the box of the lungs, grown to hold all of the tumour."""
    margin: float = 10.0
    """Margin around the lungs in millimetres."""
    intercept: float | None = None
    """Number that is added to all values to give HU; None: the values are HU."""
    structures: tuple[str, ...] = ()
    """Names of the segments of a SEG, or structures of an RT structure set, that become the labels 1, 2, ...; empty: all."""
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
        """Crop a labelled volume, choose slices and code them. Raises DataError if it is not in HU or no lungs are found."""
        assert volume.labels is not None
        values, tumour = volume.values, (volume.labels > 0).astype(np.uint8)
        if self.intercept is not None:
            values = values.astype(np.float32) + np.float32(self.intercept)
        if values.min() >= HIGHEST_AIR:
            smallest = f"its smallest value is {values.min():g}, so it is not in HU"
            _fail(study, f"has no air: {smallest}; --intercept -1024 adds that number to all values")
        box, notes = self._box(study, values, tumour, volume.spacing) if self.crop else (_whole_box(values), [])
        return _cut(values, tumour, volume.spacing, box, 1, self.selection, self._code, SHOWN_HU, notes)

    def _box(
        self, study: str, values: Array, tumour: Array, spacing: tuple[float, float, float] | None
    ) -> tuple[Box, list[str]]:
        lungs = lung_box(values, spacing or (1.0, 1.0, 1.0), self.margin)
        if lungs is None:
            _fail(study, "no lungs were found in it; --no-crop keeps whole slices")
        if not tumour.any():
            return lungs, []
        grown = joined(lungs, around(tumour))
        return grown, [] if grown == lungs else ["the crop was grown to hold all of the tumour"]

    def _code(self, values: Array) -> npt.NDArray[np.uint16]:
        return np.clip(np.rint(values.astype(np.float32)) - self.hu_min, 0, 65535).astype(np.uint16)


@dataclass(frozen=True)
class Slices:
    """Slices of any volume, coded in 8 bits by a window.

    Raises:
        RelayError: if an option cannot be used.
    """

    selection: Selection = field(default_factory=lambda: Selection("all"))
    layout: str = "folder"
    """Data set whose layout is written: folder or midline."""
    axis: str = "axial"
    """Direction of cutting: axial, coronal or sagittal. Slices are oriented for viewing: the head or the front up, the
    patient's right on the left."""
    window: tuple[float, float] | None = None
    """Values that become black and white; None: the 0.5th and 99.5th percentiles of the volume."""
    every: int = 1
    """Step between the slices that are considered: 1 takes each slice, 2 every other one."""
    structures: tuple[str, ...] = ()
    """Names of the segments of a SEG, or structures of an RT structure set, that become the labels 1, 2, ...; empty: all."""
    rescaled: ClassVar[bool] = False
    word: ClassVar[str] = "labelled"

    def __post_init__(self) -> None:
        for name, value, choices in (("layout", self.layout, ("folder", "midline")), ("axis", self.axis, AXES)):
            if value not in choices:
                raise RelayError(f"--{name} {value}: choose {' or '.join(choices)}")
        if self.window is not None and not (all(map(math.isfinite, self.window)) and self.window[0] < self.window[1]):
            raise RelayError("--window: give LOW,HIGH, two numbers, the smaller first")
        if self.every < 1:
            raise RelayError(f"--every {self.every}: give 1 or more")

    def cut(self, study: str, volume: Volume) -> Cut:
        """Turn a volume, choose slices and code them. Raises DataError if a mask cannot hold a label value."""
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
        values, axes = turned(volume.values, self.axis), AXES[self.axis]
        spacing = None if volume.spacing is None else tuple(volume.spacing[axis] for axis in axes)
        selection = self.selection if labels is not None else Selection("all")
        turned_labels = None if labels is None else turned(labels, self.axis)

        def code(part: Array) -> npt.NDArray[np.uint8]:
            return np.rint(np.clip((part.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)

        return _cut(values, turned_labels, spacing, _whole_box(values), self.every, selection, code, (low, high), notes)


def turned(values: Array, axis: str) -> Array:
    """Return an LPS volume with the cutting axis first; coronal and sagittal slices are flipped so that the head is up."""
    standing = values.transpose(AXES[axis])
    return standing if axis == "axial" else standing[:, ::-1]


def _cut(
    values: Array, labels: Array | None, spacing: Any, box: Box, every: int, selection: Selection,
    code: Callable[[Array], Array], window: tuple[float, float], notes: list[str],
) -> Cut:  # fmt: skip
    (first, last), rows, columns = box
    crop = slice(*rows), slice(*columns)
    numbers = range(first, last, every)
    areas = [0 if labels is None else int(np.count_nonzero(labels[number][crop])) for number in numbers]
    kept = [numbers[i] for i in selection.choose(areas)]
    if labels is not None and not any(areas):
        notes.append("nothing is labelled" + ("" if kept else "; --negatives keeps slices of it"))
    if spacing is None:
        notes.append("its spacing is not known")
    voxel_mm3 = None if spacing is None else math.prod(spacing)
    facts = {
        "size": list(values.shape), "spacing": spacing, "box": box if box != _whole_box(values) else None, "kept": len(kept),
        "of": len(numbers), "labelled": None if labels is None else sum(area > 0 for area in areas),
        "ml": None if labels is None or voxel_mm3 is None else round(int(np.count_nonzero(labels)) * voxel_mm3 / 1000, 2),
        "notes": notes,
    }  # fmt: skip
    shown_number = numbers[int(np.argmax(areas))] if any(areas) else numbers[len(numbers) // 2]
    low, high = window
    picture = np.clip((values[shown_number].astype(np.float32) - low) / (high - low), 0, 1) * 2 - 1
    shown = picture, None if labels is None else labels[shown_number], box
    pixels = np.stack([code(values[number][crop]) for number in kept]) if kept else np.empty((0, 0, 0), np.uint8)
    masks = None if labels is None else np.array([labels[number][crop] for number in kept], np.uint8)
    return Cut(tuple(kept), pixels, masks, spacing, facts, shown)


def _whole_box(values: Array) -> Box:
    slices, rows, columns = values.shape
    return (0, slices), (0, rows), (0, columns)


def _fail(study: str, message: str) -> NoReturn:
    raise DataError("a study cannot be prepared", [Problem(study, message)])
