"""Sizes of a relay, the solver's and those of the generators: a batch is brought from one to another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from relay_core import distributed


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


def partly_reduced(images: Tensor, drawn: int, share: float, step: int) -> Tensor:
    """Return a batch (N, C, R, R) with some images reduced to the generators' `drawn` pixels and enlarged, as replay is.

    At a first site too: the solver that learns there will teach the next one on such images. Counted over all steps and
    processes it is one in every 1 / `share`, the same ones however the batches are cut.
    """
    side = images.shape[-1]
    if side == drawn:
        return images
    world = distributed.world()
    numbers = (step * len(images) + torch.arange(len(images))) * world + distributed.rank()
    chosen = ((numbers + 1).double() * share).floor() > (numbers.double() * share).floor()
    if not chosen.any():
        return images
    small = resize_images(images[chosen.to(images.device)], drawn)
    return images.index_copy(0, chosen.nonzero()[:, 0].to(images.device), resize_images(small, side))
