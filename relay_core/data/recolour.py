"""Give images the colours of other images: shapes, and so the label maps, stay."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-4
"""Added to the variance of a channel (images are in [-1, 1]), so that an even image has a colour distribution too."""
FEWEST = 8
"""Pixels that a class needs in an image for its colours to be known."""


def colours(images: Tensor, where: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the mean colour (N, C) of images (N, C, H, W), and the Cholesky factor (N, C, C) of its covariance.

    `where` (N, H, W), bool, says which pixels count; of an image without any the mean is 0, and the factor next to it.
    """
    pixels = images.flatten(2)
    weight = torch.ones_like(pixels[:, :1]) if where is None else where.flatten(1)[:, None].to(pixels.dtype)
    count = weight.sum(dim=2).clamp(min=1)
    mean = (pixels * weight).sum(dim=2) / count
    centred = (pixels - mean[:, :, None]) * weight
    covariance = centred @ centred.transpose(1, 2) / count[:, :, None]
    return mean, torch.linalg.cholesky(covariance + EPSILON * torch.eye(images.shape[1], device=images.device))


def recoloured(images: Tensor, mean: Tensor, factor: Tensor, where: Tensor | None = None) -> Tensor:
    """Return images (N, C, H, W) with the mean colour (N, C) and the covariance factor (N, C, C) given, cut to [-1, 1].

    A linear map of the colours (Reinhard 2001, Color transfer between images, with the covariance instead of three
    variances): shapes, and so the label maps, stay. With `where` (N, H, W) it is the map of these pixels' colours, and the
    others stay as they are.
    """
    own_mean, own_factor = colours(images, where)
    white = torch.linalg.solve_triangular(own_factor, images.flatten(2) - own_mean[:, :, None], upper=False)
    result = (factor @ white + mean[:, :, None]).reshape(images.shape).clamp(-1, 1)
    return result if where is None else torch.where(where[:, None], result, images)


def recoloured_by_class(images: Tensor, labels: Tensor, like: Tensor, like_labels: Tensor, classes: int) -> Tensor:
    """Return images (N, C, H, W) whose pixels of each class have the colours that the class has in the images `like`.

    A class that `like` does not have, or that has fewer than `FEWEST` pixels on either side, keeps its colours.

    Shape: images and like (N, C, H, W); labels and like_labels (N, H, W), 0 to classes - 1.
    """
    result = images
    for c in range(classes):
        here, there = labels == c, like_labels == c
        enough = (here.sum(dim=(1, 2)) >= FEWEST) & (there.sum(dim=(1, 2)) >= FEWEST)
        result = recoloured(result, *colours(like, there), where=here & enough[:, None, None])
    return result
