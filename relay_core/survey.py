"""What `relay preflight` prints and draws: a survey of a site's files for a person and as JSON, progress, previews."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from relay_core.data import Survey
from relay_core.data.pairs import Pair
from relay_core.data.site import Decoder, to_unit
from relay_core.files import write_atomically
from relay_core.imaging.drawing import overlay
from relay_core.metrics.matrix import table_row

FEW_IMAGES = 300
"""A site of more images says how far it is."""
PREVIEW_SIDE = 512
"""Longest side of a preview in pixels."""
_SHOWN = 10


def survey_json(found: Survey, previews: Sequence[str]) -> dict[str, Any]:
    """A survey as plain data; sizes are width x height, files are named below the site's folder."""
    report = found.report
    return {
        "ok": not found.problems,
        "layout": report.name,
        "counts": report.counts,
        "subjects": report.subjects,
        "class_shares": report.class_shares,
        "sizes": _sizes(found),
        "duplicates": [list(files) for files in report.duplicates],
        "repeats": {split: [list(files) for files in groups] for split, groups in report.repeats.items()},
        "problems": [{"file": problem.file, "message": problem.message} for problem in found.problems],
        "previews": list(previews),
    }


def survey_text(found: Survey) -> str:
    """The same of a site that can be used, for a person."""
    report = found.report
    classes = [f"class {i}" for i in range(len(report.class_shares["train"]))]
    head = ["split", "images", "patients", *classes]
    lines = [table_row(head), table_row(["---"] * len(head))]
    for split, count in report.counts.items():
        shares = [f"{share:.1%}" for share in report.class_shares[split]]
        lines.append(table_row([split, str(count), str(report.subjects[split]), *shares]))
    sizes = [f"{size} ({count})" for size, count in _sizes(found).items()]
    lines.append(f"\nsizes (width x height): {_some(sizes, ', ')}")
    groups: dict[str, Sequence[tuple[str, ...]]] = {"train and test have images with the same pixels": report.duplicates}
    groups |= {f"{split} has the same image more than once": files for split, files in report.repeats.items()}
    for what, files in groups.items():
        shown = _some([" = ".join(names) for names in files], "\n  ")
        lines += [f"warning: {what}:\n  {shown}"] if files else []
    return "\n".join(lines)


def _sizes(found: Survey) -> dict[str, int]:
    return {f"{width}x{height}": count for (height, width), count in found.report.sizes.items()}


def _some(items: list[str], separator: str) -> str:
    more = [f"and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return separator.join([*items[:_SHOWN], *more])


def write_previews(found: Survey, folder: Path, count: int) -> list[str]:
    """Draw usable training pairs, evenly spread over the split, as `preview-000.png`, ...; return these file names.

    No name of a source file gets into a preview or its name. Raises OSError.
    """
    pairs = found.usable["train"]
    count = min(count, len(pairs))
    chosen = [pairs[(2 * i + 1) * len(pairs) // (2 * count)] for i in range(count)]
    names = [f"preview-{i:03d}.png" for i in range(count)]
    for name, pair in zip(names, chosen, strict=True):
        content = io.BytesIO()
        Image.fromarray(draw_pair(found.decoder, pair)).save(content, format="PNG")
        write_atomically(folder / name, content.getvalue())
    return names


def draw_pair(decoder: Decoder, pair: Pair) -> np.ndarray:
    """An image with its mask over it: each class tinted and outlined.

    Shape:
        (H, W, 3) uint8; the longest side is at most `PREVIEW_SIDE` pixels.

    Raises:
        DataError: it cannot be read any more.
    """
    pixels, ids, _ = decoder.read(pair)
    image = to_unit(torch.from_numpy(np.array(pixels)))
    mask = torch.from_numpy(ids) if ids.ndim else torch.zeros(image.shape[1:], dtype=torch.uint8)
    scale = PREVIEW_SIDE / max(mask.shape)
    if scale < 1:
        size = [max(1, round(side * scale)) for side in mask.shape]
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
        mask = F.interpolate(mask[None, None], size, mode="nearest-exact")[0, 0]
    return overlay(image * 2 - 1, mask)
