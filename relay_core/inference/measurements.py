"""Numbers from a mask: areas, volumes, cup-to-disc ratios, confidence; and the tables of predictions.

Legend: S slices, H rows, W columns.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from relay_core.files import write_atomically
from relay_core.imaging import Study


def measure(study: Study, ids: npt.NDArray[Any], sure: npt.NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
    """What is where, and how sure the model is.

    Args:
        study: the image.
        ids: class ids (S, H, W).
        sure: for each class the sum of its probability over the pixels that are its own.
        names: of the classes, the background first.

    Returns:
        Plain data. `classes` lists all but the background: `pixels` (voxels of a volume); `area_mm2` of a picture, or
        `volume_mm3` of a stack, null where the spacing is not known; mean `confidence` in it, null where it is empty.
        `cup_to_disc`, of a 2-D image with classes of these names: see `cup_to_disc`. `mean_confidence` over all pixels.
    """
    counts = np.bincount(ids.ravel(), minlength=len(names))
    classes = [
        {"id": i, "name": name, "pixels": int(counts[i]), **_size(study, int(counts[i])),
         "confidence": round(float(sure[i] / counts[i]), 4) if counts[i] else None}
        for i, name in enumerate(names) if i > 0
    ]  # fmt: skip
    found: dict[str, Any] = {
        "width": int(ids.shape[2]), "height": int(ids.shape[1]), "slices": len(ids),
        "spacing_mm": None if study.spacing is None else list(study.spacing),
        "classes": classes,
        "mean_confidence": round(float(sure.sum() / ids.size), 4),
    }  # fmt: skip
    if not study.volume and (ratios := cup_to_disc(ids[0], names)) is not None:
        found["cup_to_disc"] = ratios
    return found


def _size(study: Study, count: int) -> dict[str, float | None]:
    spacing = study.spacing
    if study.volume:
        if spacing is None or spacing[0] is None:
            return {"volume_mm3": None}
        return {"volume_mm3": round(count * spacing[0] * spacing[1] * spacing[2], 4)}
    return {"area_mm2": round(count * spacing[1] * spacing[2], 4) if spacing is not None else None}


def cup_to_disc(ids: npt.NDArray[Any], names: Sequence[str]) -> dict[str, float | None] | None:
    """Vertical and horizontal cup-to-disc ratio: height and width of the cup over those of the disc that it lies in.

    Heights and widths are those of the bounding boxes; the disc includes the cup. `area` is the ratio of the areas.
    Null where no disc was found; None where the classes are not disc and cup.

    Args:
        ids: class ids (H, W).
        names: of the classes.
    """
    found = {word: [i for i, name in enumerate(names) if word in name.lower().split()] for word in ("disc", "cup")}
    if any(len(where) != 1 for where in found.values()):
        return None
    cup = ids == found["cup"][0]
    disc = cup | (ids == found["disc"][0])
    if not disc.any():
        return {"vertical": None, "horizontal": None, "area": None}
    ratios = [_extent(cup, axis) / _extent(disc, axis) for axis in (1, 0)]
    return {
        "vertical": round(ratios[0], 4),
        "horizontal": round(ratios[1], 4),
        "area": round(float(cup.sum() / disc.sum()), 4),
    }


def _extent(inside: npt.NDArray[np.bool_], over: int) -> int:
    lines = np.flatnonzero(inside.any(axis=over))
    return int(lines[-1] - lines[0] + 1) if len(lines) else 0


HEADER = ("file", "class", "name", "pixels", "area_mm2", "volume_mm3", "confidence", "mean_confidence",
          "vertical_cup_to_disc", "horizontal_cup_to_disc", "unlike")  # fmt: skip
"""Columns of `rows`."""


def rows(file: str, found: dict[str, Any], unlike: float | None) -> Iterator[list[str]]:
    """`measure` as lines of a table, one a class.

    Args:
        file: the image's name.
        found: from `measure`.
        unlike: the score of `outlier`, None where there is none.
    """
    ratios = found.get("cup_to_disc") or {}
    for entry in found["classes"]:
        values = [
            file, entry["id"], entry["name"], entry["pixels"], entry.get("area_mm2"), entry.get("volume_mm3"),
            entry["confidence"], found["mean_confidence"], ratios.get("vertical"), ratios.get("horizontal"), unlike,
        ]  # fmt: skip
        yield ["" if value is None else str(value) for value in values]


def class_header(names: Sequence[str]) -> tuple[str, ...]:
    """Columns of `class_row`, for classes of these names."""
    return ("file", "class", "name", "confidence", *(f"probability of {name}" for name in names), "unlike")


def class_row(file: str, found: dict[str, Any]) -> list[str]:
    """What `prediction.classify` found in an image, as a line of a table."""
    unlike = found["unlike"]["score"] if found["unlike"] else ""
    sure = [entry["probability"] for entry in found["probabilities"]]
    return [str(v) for v in (file, found["class"], found["class_name"], found["confidence"], *sure, unlike)]


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(header)
    table.writerows(rows)
    write_atomically(path, text.getvalue().encode())
