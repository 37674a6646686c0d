"""Lay the slices of a study out on one sheet, so that a page shows any of them of whatever format they came in.

Legend: S slices, H rows, W columns.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from relay_core.imaging.drawing import layer, palette, to_uint8
from relay_core.imaging.study import Study

SIDE = 512
"""Most pixels along a side of a slice on a sheet."""
PIXELS = 1 << 24
"""Most pixels of the slices of a sheet together (64 of 512 x 512): phones show no much larger picture."""


def contact_sheets(study: Study, ids: npt.NDArray[np.uint8] | None, num_classes: int) -> dict[str, Any]:
    """Draw all slices of a study as the network sees them, side by side, and apart from them what was found there.

    A slice is reduced where it or all of them are too large, and has square pixels where the spacing is known. A pixel that
    stands for several shows the highest class among them, so that what was found is not lost unless another class covers it.

    Args:
        study: the image or volume.
        ids: the mask (S, H, W); None: nothing is drawn.
        num_classes: number of classes, the background included.

    Returns:
        Plain data: `image`, a PNG in base64; `found`, another one of the same size, transparent where there is background,
        that looks as `overlay` when it is laid over the first (None without `ids`); `width` and `height` of a slice there in
        pixels and `columns`, slices in a row: slice i, counted from 0, begins at column (i % columns) * width and row
        (i // columns) * height; `fullest`, the number of the slice, counted from 1, with the most foreground, or the middle
        one where there is none; `colours` of the classes but the background, as #rrggbb.
    """
    height, width, columns = _layout(len(study), study.pixels.shape[2], study.pixels.shape[3], study.spacing)
    size = (columns * width, -(-len(study) // columns) * height)
    image = Image.new("RGB" if study.pixels.shape[1] == 3 else "L", size)
    found = None if ids is None else Image.new("RGBA", size)
    for i in range(len(study)):
        corner = (i % columns * width, i // columns * height)
        shown = Image.fromarray(to_uint8(study.batch(i, i + 1)[0] * 2 - 1))
        image.paste(shown.resize((width, height), Image.Resampling.BOX), corner)
        if ids is not None and found is not None:
            found.paste(Image.fromarray(layer(_resized(ids[i], height, width))), corner)
    foreground = np.zeros(1, np.int64) if ids is None else np.count_nonzero(ids, axis=(1, 2))
    return {
        "image": _png(image), "found": found and _png(found), "width": width, "height": height, "columns": columns,
        "fullest": int(foreground.argmax() if foreground.any() else len(study) // 2) + 1,
        "colours": [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in palette(num_classes)[1:]],
    }  # fmt: skip


def _layout(slices: int, rows: int, columns: int, spacing: Sequence[float | None] | None) -> tuple[int, int, int]:
    """Return height and width of a slice on a sheet, and how many stand in a row, so that the sheet is about square."""
    tall, wide = float(rows), float(columns)
    if spacing is not None and spacing[1] and spacing[2]:
        finest = min(spacing[1], spacing[2])
        tall, wide = tall * spacing[1] / finest, wide * spacing[2] / finest
    scale = min(1.0, SIDE / max(tall, wide), math.sqrt(PIXELS / (slices * tall * wide)))
    height, width = max(1, round(tall * scale)), max(1, round(wide * scale))
    return height, width, min(slices, math.ceil(math.sqrt(slices * height / width)))


def _resized(ids: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Bring class ids (H, W) to (height, width): of pixels that become one the highest; one may become several."""
    rows, columns = (np.arange(new) * old // new for new, old in zip((height, width), ids.shape, strict=True))
    resized: npt.NDArray[np.uint8] = np.maximum.reduceat(np.maximum.reduceat(ids, rows, axis=0), columns, axis=1)
    return resized


def _png(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, format="PNG", compress_level=3)  # 6 takes two and a half times as long for nothing
    return base64.b64encode(content.getvalue()).decode()
