"""How well a replay stands for the images that it replaces: variety and shapes of its label maps, coverage of its images.

Shapes: N real and M generated samples; label maps (N, H, W) of class ids, class 0 the background; features (N, D).
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch
from scipy.ndimage import label as components
from torch import Tensor

from relay_core.metrics.segmentation import dice_by_class

NEIGHBOURS = 5
"""Nearest neighbours that a sample's neighbourhood reaches to (k in both papers; fewer where there are fewer samples)."""
PAIRS = 2000
"""Most pairs of label maps that are compared."""


def coverage_scores(real: Tensor, generated: Tensor, neighbours: int = NEIGHBOURS) -> dict[str, float]:
    """Return how the features of generated images cover those of real ones, each way.

    `precision`: share of generated images in a real image's neighbourhood, `recall`: share of real images in a generated
    one's (Kynkaanniemi 2019, arXiv 1904.06991). `density`: in how many neighbourhoods of real images a generated one lies,
    in parts of k, 1 where both are alike; `coverage`: share of real images with a generated one in their neighbourhood
    (Naeem 2020, arXiv 2002.09797). A neighbourhood is the ball to the k-th nearest image of the same kind.

    Shape: (N, D) and (M, D), N and M at least 2.
    """
    real, generated = real.double(), generated.double()
    k = min(neighbours, len(real) - 1, len(generated) - 1)
    radius_real, radius_generated = (_radii(features, k) for features in (real, generated))
    distances = torch.cdist(real, generated)
    near_real, near_generated = distances <= radius_real[:, None], distances <= radius_generated[None]
    return {
        "precision": float(near_real.any(dim=0).double().mean()),
        "recall": float(near_generated.any(dim=1).double().mean()),
        "density": float(near_real.double().sum(dim=0).mean() / k),
        "coverage": float(near_real.any(dim=1).double().mean()),
    }


def _radii(features: Tensor, k: int) -> Tensor:
    """Distance of each sample to the k-th nearest other one."""
    return torch.cdist(features, features).kthvalue(k + 1, dim=1).values  # the nearest is the sample itself


def map_scores(maps: Tensor, num_classes: int, seed: int = 0) -> dict[str, Any]:
    """Return how various label maps are, and what shapes they have.

    `pairwise_dice`: mean foreground Dice of two different maps, over at most 2,000 random pairs: 1 where all are the same.
    For each foreground class, in lists: `area`, mean share of the image, and `area_spread`, its standard deviation;
    `pieces`, connected parts (8 neighbours) of a map that has the class; `raggedness`, the outline's length over that of a
    disc of the same area, near 1 for a disc and more for frayed ones; `present`, share of the maps that have the class.
    A value is None where no map has the class, or there are fewer than 2 maps.
    """
    ids = maps.cpu().numpy()
    shapes = [[_shape(each == c) for each in ids] for c in range(1, num_classes)]
    present = [[shape for shape in of_class if shape[0] > 0] for of_class in shapes]
    return {
        "pairwise_dice": _pairwise_dice(ids, num_classes, seed),
        "present": [len(kept) / len(ids) for kept in present],
        "area": [_mean([shape[0] for shape in kept]) for kept in present],
        "area_spread": [statistics.pstdev([s[0] for s in kept]) if len(kept) > 1 else None for kept in present],
        "pieces": [_mean([shape[1] for shape in kept]) for kept in present],
        "raggedness": [_mean([shape[2] for shape in kept]) for kept in present],
    }


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _shape(mask: np.ndarray) -> tuple[float, float, float]:
    """Area as a share of the image, number of pieces, and raggedness of a mask (H, W)."""
    pixels = int(mask.sum())
    if not pixels:
        return 0.0, 0.0, 0.0
    padded = np.pad(mask, 1)
    edges = int((padded[1:] != padded[:-1]).sum() + (padded[:, 1:] != padded[:, :-1]).sum())
    length = edges * np.pi / 4  # of an outline of pixel edges, on average over its directions
    return pixels / mask.size, float(components(mask, np.ones((3, 3)))[1]), float(length / (2 * (np.pi * pixels) ** 0.5))


def _pairwise_dice(ids: np.ndarray, num_classes: int, seed: int) -> float | None:
    count = len(ids)
    if count < 2:
        return None
    first, second = np.triu_indices(count, 1)
    if len(first) > PAIRS:
        chosen = np.random.default_rng(seed).choice(len(first), PAIRS, replace=False)
        first, second = first[chosen], second[chosen]
    return float(np.mean([foreground_dice(ids[i], ids[j], num_classes) for i, j in zip(first, second, strict=True)]))


def foreground_dice(one: np.ndarray, other: np.ndarray, num_classes: int) -> float:
    """Return the mean Dice over the foreground classes that are in either of two label maps (H, W); 1 where none is."""
    counts = np.bincount((one.astype(np.int64) * num_classes + other).ravel(), minlength=num_classes**2)
    scores = dice_by_class(counts.reshape(num_classes, num_classes))
    return 1.0 if np.isnan(scores).all() else float(np.nanmean(scores))


def agreement(predicted: Tensor, maps: Tensor, num_classes: int) -> float:
    """Return the mean foreground Dice of a solver's answers (M, H, W) on images and the maps (M, H, W) they were drawn from.

    Low values say that image and map do not belong together, or that the solver does not know such images.
    """
    pairs = zip(predicted.cpu().numpy(), maps.cpu().numpy(), strict=True)
    return statistics.fmean(foreground_dice(one, other, num_classes) for one, other in pairs)
