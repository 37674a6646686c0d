"""Report what was prepared, for a person to check: a table of all studies, and pictures of some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from relay_core.errors import Problem
from relay_core.imaging import overlay, palette
from relay_core.preparation.slicing import Cut
from relay_core.texts import markdown

PICTURES = 12
"""Number of studies that get a picture."""
SIDE = 320
"""Longer side of one view in a picture, in pixels."""
_USE = {
    "folder": [
        "In a run file: `{name: folder, kwargs: {patient_pattern: '^(.*)_[0-9]+$', ...}}`. Without the pattern each "
        "slice counts as a patient, and slices of one study fall on both sides of the split.",
    ],
    "midline": ["In a run file: `dataset: {name: midline}`."],
}
"""Layout -> lines of the report that say how a run file names the slices."""


def picture(cut: Cut) -> Image.Image:
    """Draw the slice with the largest labelled area: whole with the crop's box (if cropped), and cropped with its labels."""
    pixels, labels, (_, rows, columns) = cut.shown
    ids = np.zeros(pixels.shape, np.int64) if labels is None else labels
    mm = (1.0, 1.0) if cut.spacing is None else cut.spacing[1:]
    crop = slice(*rows), slice(*columns)
    panes = [_pane(overlay(pixels[crop][None], ids[crop]), mm)]
    if cut.facts["box"] is not None:
        whole = _pane(overlay(pixels[None], np.zeros(pixels.shape, np.int64)), mm)
        row_scale, column_scale = whole.height / pixels.shape[0], whole.width / pixels.shape[1]
        box = columns[0] * column_scale, rows[0] * row_scale, columns[1] * column_scale - 1, rows[1] * row_scale - 1
        ImageDraw.Draw(whole).rectangle(box, outline=tuple(palette(3)[2].tolist()), width=2)
        panes.insert(0, whole)
    sheet = Image.new("RGB", (sum(pane.width for pane in panes) + 8 * (len(panes) - 1), max(pane.height for pane in panes)))
    left = 0
    for pane in panes:
        sheet.paste(pane, (left, 0))
        left += pane.width + 8
    return sheet


def _pane(pixels: npt.NDArray[np.uint8], mm: Sequence[float]) -> Image.Image:
    """Resize pixels (H, W, 3) to the proportions of the body; `mm` is their spacing, row then column."""
    height, width = pixels.shape[0] * mm[0], pixels.shape[1] * mm[1]
    scale = SIDE / max(height, width)
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(
        (max(1, round(width * scale)), max(1, round(height * scale)))
    )


def report_text(
    options: Mapping[str, Any], word: str, facts: Mapping[str, Mapping[str, Any]], problems: Sequence[Problem],
    pictures: Sequence[tuple[str, str]],
) -> str:  # fmt: skip
    """Return the report as Markdown; it names no folder of this machine.

    Args:
        options: options of the preparation.
        word: the word for labelled slices, such as "tumour".
        facts: study -> the facts of its `Cut`.
        problems: problems of the studies that are left out.
        pictures: pairs of a study and its picture's file, relative to the report.
    """
    kept = sum(study_facts["kept"] for study_facts in facts.values())
    lines = ["# Prepared slices", "", f"{len(facts)} studies, {kept} slices. " + _options_text(options), ""]
    headings = ["study", "size", "spacing (mm)", "crop box", "kept / of", f"{word} slices", f"{word} ml", "notes"]
    lines += [_table_row(headings), _table_row(["---"] * len(headings))]
    lines += [_table_row([study, *_fact_cells(study_facts)]) for study, study_facts in sorted(facts.items())]
    lines += ["", *_USE[options["layout"]], ""] if options.get("layout") in _USE else []
    lines += ["", "Sizes and boxes: slices x rows x columns. Left in a cropped study's picture: the slice and its box."]
    if problems:
        lines += ["", "## Left out", "", *(f"- {markdown(str(problem))}" for problem in problems)]
    for study, file in pictures:
        lines += ["", f"## {study}", "", f"![{study}]({file})"]
    return "\n".join(lines) + "\n"


def _options_text(options: Mapping[str, Any]) -> str:
    texts = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in options.items()}
    return f"Options: {', '.join(markdown(f'{name} {texts[name]}') for name in texts if options[name] not in (None, ''))}."


def _table_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _fact_cells(facts: Mapping[str, Any]) -> list[str]:
    box, spacing = facts["box"], facts["spacing"]
    return [
        " x ".join(map(str, facts["size"])),
        "-" if spacing is None else " x ".join(f"{mm:.4g}" for mm in spacing),
        "-" if box is None else " x ".join(f"{low}..{high - 1}" for low, high in box),
        f"{facts['kept']} / {facts['of']}",
        *("-" if facts[name] is None else f"{facts[name]:g}" for name in ("labelled", "ml")),
        markdown("; ".join(facts["notes"])),
    ]
