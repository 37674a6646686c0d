"""Figures: the heat map of a score matrix and grids of labelled images. Imports no torch, and no pyplot.

Legend: N images, C colour channels (1 or 3), H rows, W columns. Tensors are taken from any device.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps, get_data_path
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

from relay_core.files import write_atomically
from relay_core.imaging import as_array, overlay, palette, to_uint8
from relay_core.metrics.matrix import ScoreMatrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _PAPER, _GREY = "#1a1a1a", "#ffffff", "#6b6b6b"
_GAP = 4
_INCHES_A_LETTER = 0.085  # approximate width in a tick label


def heat_map(matrix: ScoreMatrix, path: str | Path) -> None:
    """Draw a score matrix as a PNG: values in the cells, a row's own site outlined. Written atomically.

    Raises OSError.
    """
    write_atomically(Path(path), render_heat_map(matrix))


def write_matrix(matrix: ScoreMatrix, folder: str | Path, stem: str, *, draw: bool = True) -> list[Path]:
    """Write `<stem>.json`, `.csv`, `.md` and, with `draw`, the heat map `.png`; each file is whole or not there.

    Creates the folder. Everything is rendered before the first file is replaced. Raises OSError.
    """
    contents = {
        "json": matrix.to_json().encode(),
        "csv": matrix.to_csv().encode(),
        "md": matrix.to_markdown().encode(),
    }
    if draw:
        contents["png"] = render_heat_map(matrix)
    paths = [Path(folder) / f"{stem}.{suffix}" for suffix in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_atomically(path, content)
    return paths


def render_heat_map(matrix: ScoreMatrix) -> bytes:
    """Return the PNG file that `heat_map` writes, as bytes."""
    rows, columns = len(matrix.rows), len(matrix.columns)
    width = 1.9 + _INCHES_A_LETTER * max(map(len, matrix.rows)) + 0.95 * max(columns, 4)
    height = 1.4 + 0.55 * rows + 0.5 * _INCHES_A_LETTER * max(map(len, matrix.columns)) * _crowded(matrix)
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    cells = np.array([[np.nan if value is None else value for value in row] for row in matrix.values], dtype=float)
    norm = _colour_range(cells, matrix)
    colours = colormaps["YlGnBu_r" if matrix.lower_is_better else "YlGnBu"].with_extremes(bad="#ececec")
    image = axes.imshow(np.ma.masked_invalid(cells), cmap=colours, norm=norm, aspect="auto")
    _label_axes(axes, matrix)
    better = " (lower is better)" if matrix.lower_is_better else ""
    figure.suptitle(f"{matrix.title}: average {matrix.text(matrix.average())}{better}", color=_INK, fontsize=11)
    for row in range(rows):
        for column in range(columns):
            _write_cell(axes, matrix, row, column, colours(norm(cells[row, column])))
    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, color=_GREY, labelcolor=_GREY)
    return png(figure)


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file, the same wherever and whenever it is drawn."""
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})
    return out.getvalue()


def _crowded(matrix: ScoreMatrix) -> bool:
    """Return whether a test site's name is wider than its column."""
    columns = len(matrix.columns)
    return _INCHES_A_LETTER * max(map(len, matrix.columns)) > 0.9 * max(columns, 4) / columns


def _colour_range(cells: np.ndarray, matrix: ScoreMatrix) -> Normalize:
    """Return the range of the colour scale, at least as wide as the metric asks for.

    Without a least width, noise would look like a difference.
    """
    finite = cells[np.isfinite(cells)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    pad = max(0.0, matrix.registered.smallest_range - (high - low)) / 2
    low, high = low - pad, high + pad
    if matrix.lower_is_better:
        return Normalize(max(low, 0.0), high)
    return Normalize(max(low, 0.0) if finite.min(initial=0.0) >= 0 else low, high)


def _label_axes(axes: Axes, matrix: ScoreMatrix) -> None:
    rows, columns = len(matrix.rows), len(matrix.columns)
    crowded = _crowded(matrix)
    axes.set_xticks(
        range(columns), matrix.columns, rotation=30 if crowded else 0, ha="right" if crowded else "center", parse_math=False
    )
    axes.set_yticks(range(rows), matrix.rows, parse_math=False)
    axes.tick_params(length=0, labelsize=10, labelcolor=_INK)
    axes.set_xlabel("test set of", color=_GREY)
    axes.set_ylabel("after training at" if matrix.sequential else "model of", color=_GREY)
    axes.set_xticks(np.arange(1, columns) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, rows) - 0.5, minor=True)
    axes.grid(which="minor", color=_PAPER, linewidth=2)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def _write_cell(axes: Axes, matrix: ScoreMatrix, row: int, column: int, colour: tuple[float, ...]) -> None:
    value = matrix.values[row][column]
    ink = _INK if value is None or _luminance(colour) > 0.2 else _PAPER
    axes.text(column, row, matrix.text(value), ha="center", va="center", color=ink, fontsize=10)
    if matrix.rows[row] == matrix.columns[column]:
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#d55e00", linewidth=2.5, clip_on=False, zorder=3))


def _luminance(colour: tuple[float, ...]) -> float:
    """Return the relative luminance of an sRGB colour (WCAG 2); ink and paper are equally legible on 0.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def sample_grid(
    rows: Sequence[tuple[str, Any, Any | None, Any | None]], path: str | Path, num_classes: int, scale: int = 1
) -> None:
    """Draw rows of images as a PNG: a caption, then image, label and prediction side by side. Written atomically.

    Each row is (caption, images (N, C, H, W) in [-1, 1], labels (N, H, W) integer or None, predictions (N, H, W) or None);
    sizes may differ from row to row. Each pixel becomes scale x scale pixels. A legend gives the classes' colours.
    Raises ValueError for no rows, other shapes, an empty row or scale < 1; OSError.
    """
    if not rows or scale < 1:
        raise ValueError("a sample grid needs at least one row, and a scale of 1 or more")
    parts = [part for row in rows for part in (_caption(row), _strip(row, scale))]
    parts.append(_legend(num_classes))
    width = max(part.width for part in parts) + 2 * _GAP
    page = Image.new("RGB", (width, sum(part.height + _GAP for part in parts) + _GAP), _PAPER)
    top = _GAP
    for part in parts:
        page.paste(part, (_GAP, top))
        top += part.height + _GAP
    out = io.BytesIO()
    page.save(out, format="PNG")
    write_atomically(Path(path), out.getvalue())


def _strip(row: tuple[str, Any, Any | None, Any | None], scale: int) -> Image.Image:
    """Draw the tiles of one row; a wider gap parts one image from the next."""
    images, *maps = (as_array(part) for part in row[1:] if part is not None)
    if images.ndim != 4 or not len(images) or any(ids.shape != (len(images), *images.shape[2:]) for ids in maps):
        shapes = [images.shape, *(ids.shape for ids in maps)]
        raise ValueError(f"a row needs images (N, C, H, W) and maps (N, H, W) of the same size, not {shapes}")
    images, *maps = (part.repeat(scale, axis=-2).repeat(scale, axis=-1) for part in (images, *maps))
    height, width = images.shape[2:]
    group = (1 + len(maps)) * (width + 1) - 1
    strip = np.full((height, len(images) * (group + 2 * _GAP) - 2 * _GAP, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        tiles = [to_uint8(image), *(overlay(image, ids[index]) for ids in maps)]
        for place, tile in enumerate(tiles):
            left = index * (group + 2 * _GAP) + place * (width + 1)
            strip[:, left : left + width] = tile
    return Image.fromarray(strip)


def _caption(row: tuple[str, Any, Any | None, Any | None]) -> Image.Image:
    tile_names = ["image", *["label"] * (row[2] is not None), *["prediction"] * (row[3] is not None)]
    return _line([(row[0], _INK, True), (", ".join(tile_names), _GREY, False)])


def _legend(num_classes: int) -> Image.Image:
    words: list[tuple[str, Any, bool]] = [("classes", _GREY, False)]
    for index, colour in enumerate(palette(num_classes)[1:], start=1):
        words += [("\N{BLACK SQUARE}", tuple(map(int, colour)), True), (str(index), _INK, False)]
    return _line(words)


def _line(words: Sequence[tuple[str, Any, bool]], size: int = 13) -> Image.Image:
    """Draw one line of (text, colour, bold) words as an image that is just wide enough."""
    fonts = Path(get_data_path()) / "fonts" / "ttf"
    faces = {bold: ImageFont.truetype(fonts / f"DejaVuSans{'-Bold' * bold}.ttf", size) for bold in (False, True)}
    ends = np.cumsum([faces[bold].getlength(text) + size / 2 for text, _, bold in words]).tolist()
    line = Image.new("RGB", (int(ends[-1]) + 1, size + 6), _PAPER)
    for (text, colour, bold), left in zip(words, [0, *ends], strict=False):
        ImageDraw.Draw(line).text((left, 2), text, fill=colour, font=faces[bold])
    return line
