"""Deep supervision: one loss of answers of several sizes (Isensee 2021, doi 10.1038/s41592-020-01008-z)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def at_size(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Return the label map (N, H, W) at another size (h, w): each pixel gets the id of the pixel nearest to its centre."""
    resampled = F.interpolate(labels[:, None].float(), tuple(size), mode="nearest-exact")
    return resampled[:, 0].to(labels.dtype)


def over_levels(losses: Sequence[Tensor]) -> Tensor:
    """Return the mean of the losses (scalars) of all levels, the finest first, weighted by 1, 1/2, 1/4, ..."""
    weights = [0.5**i for i in range(len(losses))]
    return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum() / sum(weights)
