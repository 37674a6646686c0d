"""Measure masks: areas, volumes, cup-to-disc ratios, confidence; and write the tables of predictions.

Legend: S slices, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from relay_core.files import write_atomically
from relay_core.imaging import Study
from relay_core.texts import csv_table


def measure(study: Study, ids: npt.NDArray[Any], sure: npt.NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
    """Measure the size of each class in a mask, and how confident the model is of it.

    Args:
        study: the image or volume.
        ids: class ids (S, H, W).
        sure: for each class, the sum of its probability over the pixels that were assigned to it.
        names: names of the classes, the background first.

    Returns:
        Plain data: `width`, `height`, `slices` and `spacing_mm` of the study; `mean_confidence` over all pixels; `classes`,
        an entry for each class but the background: number of `pixels` (of a volume: voxels), `area_mm2` of a picture or
        `volume_mm3` of a stack, None where the spacing is unknown, and the mean `confidence` in its pixels, None where there
        are none; and for a 2-D image with classes of these names `cup_to_disc`, see there.
    """
    counts = np.bincount(ids.ravel(), minlength=len(names))
    classes = [
        {"id": i, "name": name, "pixels": int(counts[i]), **_size(study, int(counts[i])),
         "confidence": significant(sure[i] / counts[i], 4) if counts[i] else None}
        for i, name in enumerate(names) if i > 0
    ]  # fmt: skip
    result: dict[str, Any] = {
        "width": int(ids.shape[2]), "height": int(ids.shape[1]), "slices": len(ids),
        "spacing_mm": None if study.spacing is None else list(study.spacing),
        "classes": classes,
        "mean_confidence": significant(sure.sum() / ids.size, 4),
    }  # fmt: skip
    if not study.volume and (ratios := cup_to_disc(ids[0], names)) is not None:
        result["cup_to_disc"] = ratios
    return result


def _size(study: Study, count: int) -> dict[str, float | None]:
    spacing = study.spacing
    if study.volume:
        if spacing is None or spacing[0] is None:
            return {"volume_mm3": None}
        return {"volume_mm3": significant(count * spacing[0] * spacing[1] * spacing[2])}
    return {"area_mm2": significant(count * spacing[1] * spacing[2]) if spacing is not None else None}


def significant(value: float, digits: int = 7) -> float:
    """Round to so many significant digits, so that nothing small becomes 0."""
    return float(f"{value:.{digits}g}")


def cup_to_disc(ids: npt.NDArray[Any], names: Sequence[str]) -> dict[str, float | None] | None:
    """Compute cup-to-disc ratios: height, width and area of the cup divided by those of the disc that it lies in.

    Heights (`vertical`) and widths (`horizontal`) are those of the bounding boxes; the disc includes the cup.

    Args:
        ids: class ids (H, W).
        names: names of the classes.

    Returns:
        `vertical`, `horizontal` and `area`, each None where there is no disc; None where not exactly one class is called
        disc, and one cup.
    """
    class_ids = {word: [i for i, name in enumerate(names) if word in name.lower().split()] for word in ("disc", "cup")}
    if any(len(indices) != 1 for indices in class_ids.values()):
        return None
    cup = ids == class_ids["cup"][0]
    disc = cup | (ids == class_ids["disc"][0])
    if not disc.any():
        return {"vertical": None, "horizontal": None, "area": None}
    ratios = [_extent(cup, axis) / _extent(disc, axis) for axis in (1, 0)]
    return {
        "vertical": significant(ratios[0], 4),
        "horizontal": significant(ratios[1], 4),
        "area": significant(cup.sum() / disc.sum(), 4),
    }


def _extent(inside: npt.NDArray[np.bool_], over: int) -> int:
    """Return the length of a region's bounding box (H, W) along the axis that is not `over`; 0 for an empty region."""
    lines = np.flatnonzero(inside.any(axis=over))
    return int(lines[-1] - lines[0] + 1) if len(lines) else 0


HEADER = ("file", "class", "name", "pixels", "area_mm2", "volume_mm3", "confidence", "mean_confidence",
          "vertical_cup_to_disc", "horizontal_cup_to_disc", "unlike")  # fmt: skip
"""Columns of the table that `rows` gives the lines of."""


def rows(file: str, found: dict[str, Any], unlike: float | None) -> Iterator[list[str]]:
    """Yield the result of `measure` as lines of a table, one for each class.

    Args:
        file: the image's name.
        found: result of `measure`.
        unlike: the out-of-distribution score, None where there is none.
    """
    ratios = found.get("cup_to_disc") or {}
    for entry in found["classes"]:
        values = [
            file, entry["id"], entry["name"], entry["pixels"], entry.get("area_mm2"), entry.get("volume_mm3"),
            entry["confidence"], found["mean_confidence"], ratios.get("vertical"), ratios.get("horizontal"), unlike,
        ]  # fmt: skip
        yield ["" if value is None else str(value) for value in values]


def class_header(names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of the table that `class_row` gives the lines of, for classes of these names."""
    return ("file", "class", "name", "confidence", *(f"probability of {name}" for name in names), "unlike")


def class_row(file: str, found: dict[str, Any]) -> list[str]:
    """Return the result of `prediction.classify` for an image as a line of a table."""
    unlike = found["unlike"]["score"] if found["unlike"] else ""
    probabilities = [entry["probability"] for entry in found["probabilities"]]
    return [str(v) for v in (file, found["class"], found["class_name"], found["confidence"], *probabilities, unlike)]


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file, in which no file's name is a formula."""
    write_atomically(path, csv_table([header, *rows], "\r\n").encode())
