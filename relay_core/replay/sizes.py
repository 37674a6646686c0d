"""Sizes of a relay, the solver's and those of the generators: a batch is brought from one to another."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize_images(images: Tensor, side: int) -> Tensor:
    """Resize (N, C, H, W) to (N, C, side, side), bilinearly, with antialiasing; values stay in their range."""
    if images.shape[2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)


def resize_labels(ids: Tensor, side: int, classes: int) -> Tensor:
    """Resize class ids (N, H, W) to (N, side, side): each pixel gets the class that has the largest share of it.

    So an outline is smooth when it is enlarged, without steps. Classes of whole images (N,) stay as they are.

    Args:
        ids: class ids, 0 to classes - 1.
        side: rows and columns of the result.
        classes: K, the number of classes.
    """
    if ids.ndim == 1 or ids.shape[1:] == (side, side):
        return ids
    shares = F.one_hot(ids, classes).movedim(3, 1).float()
    return resize_images(shares, side).argmax(dim=1)
