"""Score how far an image is from those that a model was trained on: a simple out-of-distribution score, no guarantee.

Each image, at the network's resolution and in 0..1, becomes a few features: mean and standard deviation of each channel, and
its grain, the mean difference of neighbouring pixels. The checkpoint keeps the feature statistics of a site's training
images: mean and standard deviation of each feature (about the site as a whole, no image), and the distance that 99 % of the
images stay below. An image's score is its distance divided by that limit, for the site that it is closest to. With a score
up to 1 it is like most training images there; above `WARN` a person should look at it.

    distance = sqrt(mean over the features of ((x - mean) / max(sd, 0.01)) ** 2)

The score notices another modality, inverted or wrongly windowed images, another exposure, noise or blur. It does not notice
a disease that no site had.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

WARN = 1.5
"""Score above which an image counts as out of distribution: a warning tells people not to rely on the result."""
FLOOR = 0.01
"""Smallest standard deviation to divide by, so that a site whose images are all alike does not make all others outliers."""
MOST = 2000
"""Number of training images, roughly, that feature statistics are computed from: of more, every n-th is taken."""
Looks = dict[str, Any]
"""Feature statistics of a site: {images, mean, sd, limit}, with the number of images, two lists of one value for each
feature, and the distance that 99 % of the images stay below (at least 1)."""


def image_features(images: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Compute the features of images (N, C, H, W) in 0..1: channel means, channel deviations, grain; (N, 2 C + 1)."""
    values = np.asarray(images, np.float64)
    grain = np.abs(np.diff(values, axis=2)).mean(axis=(1, 2, 3)) + np.abs(np.diff(values, axis=3)).mean(axis=(1, 2, 3))
    return np.concatenate([values.mean(axis=(2, 3)), values.std(axis=(2, 3)), grain[:, None] / 2], axis=1)


def feature_statistics(batches: Iterable[npt.NDArray[Any]]) -> Looks:
    """Compute the feature statistics of a site from batches (N, C, H, W) in 0..1 of its training images."""
    features = np.concatenate([image_features(batch) for batch in batches])
    mean, sd = features.mean(axis=0), features.std(axis=0)
    limit = float(np.quantile(_distance(features, mean, sd), 0.99))
    return {
        "images": len(features), "mean": [round(x, 6) for x in mean.tolist()], "sd": [round(x, 6) for x in sd.tolist()],
        "limit": round(max(limit, 1.0), 6),
    }  # fmt: skip


def ood_score(found: npt.NDArray[Any], sites: Mapping[str, Looks]) -> tuple[float, str] | None:
    """Compute the out-of-distribution score of an image, and name the site whose training images it is closest to.

    Args:
        found: features of the image's slices, (S, 2 C + 1); of a volume the median of the slices' scores counts.
        sites: feature statistics by site; a site whose images have another number of channels is passed over.

    Returns:
        The score (0 or more, usually up to 1) and the site's name; None where no site is left to compare with.
    """
    scores = {
        site: float(np.median(_distance(found, np.array(stats["mean"]), np.array(stats["sd"])) / stats["limit"]))
        for site, stats in sites.items()
        if len(stats["mean"]) == found.shape[1]
    }
    if not scores:
        return None
    site = min(scores, key=lambda name: scores[name])
    return round(scores[site], 3), site


def _distance(
    features: npt.NDArray[Any], mean: npt.NDArray[np.float64], sd: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Compute the distance of each row of features (N, F) from their mean, in standard deviations: (N,)."""
    distances: npt.NDArray[np.float64] = np.sqrt(np.square((features - mean) / np.maximum(sd, FLOOR)).mean(axis=1))
    return distances
