"""What was prepared, for eyes: a table, and a picture of some studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from relay_core.errors import Problem
from relay_core.imaging import overlay, palette
from relay_core.preparation.slicing import Cut

PICTURES = 12
"""Studies that are shown."""
SIDE = 320
"""Pixels of a picture's longer side."""
_USE = {
    "folder": [
        "In a run file: `{name: folder, kwargs: {patient_pattern: '^(.*)_[0-9]+$', ...}}`. Without the pattern each "
        "slice counts as a patient, and slices of one study fall on both sides of the split.",
    ],
    "midline": ["In a run file: `dataset: {name: midline}`."],
}
"""How the slices are named to a training, by layout."""


def picture(cut: Cut) -> Image.Image:
    """The slice that shows most of what is labelled: whole with the crop's box, and cropped with its labels."""
    pixels, labels, (_, rows, columns) = cut.shown
    ids = np.zeros(pixels.shape, np.int64) if labels is None else labels
    mm = (1.0, 1.0) if cut.spacing is None else cut.spacing[1:]
    part = slice(*rows), slice(*columns)
    panes = [_pane(overlay(pixels[part][None], ids[part]), mm)]
    if cut.facts["box"] is not None:
        whole = _pane(overlay(pixels[None], np.zeros(pixels.shape, np.int64)), mm)
        down, right = whole.height / pixels.shape[0], whole.width / pixels.shape[1]
        box = columns[0] * right, rows[0] * down, columns[1] * right - 1, rows[1] * down - 1
        ImageDraw.Draw(whole).rectangle(box, outline=tuple(palette(3)[2].tolist()), width=2)
        panes.insert(0, whole)
    sheet = Image.new("RGB", (sum(pane.width for pane in panes) + 8 * (len(panes) - 1), max(pane.height for pane in panes)))
    left = 0
    for pane in panes:
        sheet.paste(pane, (left, 0))
        left += pane.width + 8
    return sheet


def _pane(pixels: npt.NDArray[np.uint8], mm: Sequence[float]) -> Image.Image:
    """(H, W, 3) in the proportions of the body."""
    high, wide = pixels.shape[0] * mm[0], pixels.shape[1] * mm[1]
    scale = SIDE / max(high, wide)
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((max(1, round(wide * scale)), max(1, round(high * scale))))


def report_text(
    options: Mapping[str, Any], word: str, facts: Mapping[str, Mapping[str, Any]], problems: Sequence[Problem],
    pictures: Sequence[tuple[str, str]],
) -> str:  # fmt: skip
    """The report as Markdown; it names no folder of this machine.

    Args:
        options: how it was prepared.
        word: what labelled slices are called.
        facts: of each study.
        problems: of studies that are left out.
        pictures: study and file, relative to the report.
    """
    kept = sum(one["kept"] for one in facts.values())
    lines = ["# Prepared slices", "", f"{len(facts)} studies, {kept} slices. " + _options(options), ""]
    heads = ["study", "size", "spacing (mm)", "crop box", "kept / of", f"{word} slices", f"{word} ml", "notes"]
    lines += [_row(heads), _row(["---"] * len(heads))]
    lines += [_row([study, *_cells(one)]) for study, one in sorted(facts.items())]
    lines += ["", *_USE[options["layout"]], ""] if options.get("layout") in _USE else []
    lines += ["", "Sizes and boxes: slices x rows x columns. Left in a cropped study's picture: the slice and its box."]
    if problems:
        lines += ["", "## Left out", "", *(f"- {problem}" for problem in problems)]
    for study, file in pictures:
        lines += ["", f"## {study}", "", f"![{study}]({file})"]
    return "\n".join(lines) + "\n"


def _options(options: Mapping[str, Any]) -> str:
    told = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in options.items()}
    return f"Options: {', '.join(f'{name} {told[name]}' for name in told if options[name] not in (None, ''))}."


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(facts: Mapping[str, Any]) -> list[str]:
    box, spacing = facts["box"], facts["spacing"]
    return [
        " x ".join(map(str, facts["size"])),
        "-" if spacing is None else " x ".join(f"{mm:.4g}" for mm in spacing),
        "-" if box is None else " x ".join(f"{low}..{high - 1}" for low, high in box),
        f"{facts['kept']} / {facts['of']}",
        *("-" if facts[name] is None else f"{facts[name]:g}" for name in ("labelled", "ml")),
        "; ".join(facts["notes"]),
    ]
