"""Whether an image looks like those that a model was trained on: a simple score, no guarantee.

Each image, at the network's resolution and in 0..1, becomes a few numbers: mean and standard deviation of each channel,
and its grain, the mean difference of neighbouring pixels. Of a site's training images the checkpoint keeps the mean and
the standard deviation of these numbers (about the site as a whole, no image), and the distance that 99 % of the images
stay below. An image's score is its distance over that limit, of the site that it is most like: up to 1 it looks like most
training images there, above `WARN` a person should look.

    distance = sqrt(mean over the numbers of ((x - mean) / max(sd, 0.01)) ** 2)

It notices another modality, inverted or wrongly windowed images, other exposure, noise or blur. It does not notice a
disease that no site had.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

WARN = 1.5
"""Score above which an image is called unlike the training sites."""
FLOOR = 0.01
"""Smallest standard deviation, so that images which are all alike do not make every other an outlier."""
MOST = 2000
"""Training images that are looked at."""
Looks = dict[str, Any]
"""{images, mean, sd, limit} of a site."""


def image_features(images: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """What images (N, C, H, W) in 0..1 look like: (N, 2 C + 1)."""
    values = np.asarray(images, np.float64)
    grain = np.abs(np.diff(values, axis=2)).mean(axis=(1, 2, 3)) + np.abs(np.diff(values, axis=3)).mean(axis=(1, 2, 3))
    return np.concatenate([values.mean(axis=(2, 3)), values.std(axis=(2, 3)), grain[:, None] / 2], axis=1)


def feature_statistics(batches: Iterable[npt.NDArray[Any]]) -> Looks:
    """What a site's training images, batches (N, C, H, W) in 0..1, look like together."""
    found = np.concatenate([image_features(batch) for batch in batches])
    mean, sd = found.mean(axis=0), found.std(axis=0)
    limit = float(np.quantile(_distance(found, mean, sd), 0.99))
    return {
        "images": len(found), "mean": [round(x, 6) for x in mean.tolist()], "sd": [round(x, 6) for x in sd.tolist()],
        "limit": round(max(limit, 1.0), 6),
    }  # fmt: skip


def ood_score(found: npt.NDArray[Any], sites: Mapping[str, Looks]) -> tuple[float, str] | None:
    """How unlike the training images, and the site that it is most like; None where nothing is known of any site.

    Args:
        found: `numbers` of an image's slices; of a volume the median slice counts.
        sites: `looks` by site.
    """
    best = {
        site: float(np.median(_distance(found, np.array(known["mean"]), np.array(known["sd"])) / known["limit"]))
        for site, known in sites.items()
        if len(known["mean"]) == found.shape[1]
    }
    if not best:
        return None
    site = min(best, key=lambda name: best[name])
    return round(best[site], 3), site


def _distance(
    found: npt.NDArray[Any], mean: npt.NDArray[np.float64], sd: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    distances: npt.NDArray[np.float64] = np.sqrt(np.square((found - mean) / np.maximum(sd, FLOOR)).mean(axis=1))
    return distances
