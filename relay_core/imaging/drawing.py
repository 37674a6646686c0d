"""Turn class ids into colours, and draw them over their image. Imports neither torch nor a plotting library.

Legend: C colour channels (1 or 3), H rows, W columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Okabe & Ito's colours, ordered so that the first ones stand out from red tissue and from grey scans alike.
_COLOURS = [(86, 180, 233), (240, 228, 66), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (0, 114, 178)]


def palette(num_classes: int) -> np.ndarray:
    """Return the colours of classes, which colour-blind people can tell apart (Okabe & Ito 2008).

    Shape: (num_classes, 3) uint8. Class 0, the background, is black and is never drawn. Beyond 8 classes the colours recur
    in a darker shade. A smaller palette is the beginning of a larger one.
    """
    colours = [(0, 0, 0)]
    for index in range(max(0, num_classes - 1)):
        shade = 0.65 ** (index // len(_COLOURS))
        red, green, blue = _COLOURS[index % len(_COLOURS)]
        colours.append((round(red * shade), round(green * shade), round(blue * shade)))
    return np.asarray(colours[:num_classes], dtype=np.uint8).reshape(-1, 3)


def overlay(image: Any, ids: Any, opacity: float = 0.3) -> np.ndarray:
    """Draw classes over an image: each area is tinted, and its border, one pixel wide, has the full colour.

    Shape: image (C, H, W) in [-1, 1], clipped; ids (H, W) integer, 0 is left as it is. Returns (H, W, 3) uint8.
    Raises ValueError for other shapes or a negative id.
    """
    picture, ids = to_uint8(as_array(image)), as_array(ids).astype(np.int64)
    if ids.shape != picture.shape[:2] or ids.min(initial=0) < 0:
        raise ValueError(f"ids must be (H, W) = {picture.shape[:2]} and not negative, not {ids.shape}")
    colours = palette(int(ids.max(initial=0)) + 1)[ids]
    weight = _weights(ids, opacity)[..., None]
    return np.rint(picture * (1 - weight) + colours * weight).astype(np.uint8)


def layer(ids: np.ndarray, opacity: float = 0.3) -> np.ndarray:
    """Draw classes alone, to be laid over an image: laid over it, they look as `overlay` draws them.

    Shape: ids (H, W) integer, not negative. Returns red, green, blue and alpha (H, W, 4) uint8; where ids are 0 alpha is 0.
    """
    colours = palette(int(ids.max(initial=0)) + 1)[ids]
    return np.dstack([colours, np.rint(255 * _weights(ids, opacity)).astype(np.uint8)])


def _weights(ids: np.ndarray, opacity: float) -> np.ndarray:
    """Return the share of its class's colour in each pixel (H, W), 0 to 1: 1 at borders."""
    return np.where(_borders(ids), 1.0, opacity * (ids > 0))


def _borders(ids: np.ndarray) -> np.ndarray:
    """Mark the foreground pixels that have a 4-neighbour of another class: (H, W) bool."""
    around = np.pad(ids, 1, mode="edge")
    shifted = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    return (ids > 0) & np.any([neighbours != ids for neighbours in shifted], axis=0)


def as_array(values: Any) -> np.ndarray:
    """Convert an array, or a tensor on any device, to a numpy array without importing torch."""
    return np.asarray(values.detach().cpu().float().numpy() if hasattr(values, "detach") else values)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Convert an image (C, H, W) in [-1, 1], clipped, to (H, W, 3) uint8. Raises ValueError for other shapes."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"an image must be (1 or 3, H, W), not {image.shape}")
    shown = np.rint((np.clip(np.nan_to_num(image, nan=-1.0), -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.broadcast_to(shown, (3, *shown.shape[1:])).transpose(1, 2, 0)
