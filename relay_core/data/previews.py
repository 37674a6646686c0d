"""Draw training images of a site with their masks over them, for a person to check by eye."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from relay_core.data import Survey
from relay_core.data.pairs import Pair
from relay_core.data.site import Decoder, to_unit
from relay_core.files import write_atomically
from relay_core.imaging import overlay

PREVIEW_SIDE = 512
"""Longest side of a preview in pixels."""


def write_previews(found: Survey, folder: Path, count: int) -> list[str]:
    """Draw usable training pairs, evenly spread over the split, as `preview-000.png`, ...; return these file names.

    No name of a source file appears in a preview or in its file name.

    Args:
        found: the survey of the site whose pairs are drawn.
        folder: where the previews are written.
        count: number of previews; fewer where the site has fewer usable training pairs.

    Raises:
        DataError: if a file that the survey found usable cannot be read any more.
        OSError: if a preview cannot be written.
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
    """Draw an image with its mask over it, each class tinted and outlined.

    Shape:
        (H, W, 3) uint8; the longest side is at most `PREVIEW_SIDE` pixels.

    Raises:
        DataError: if the pair cannot be read any more.
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
