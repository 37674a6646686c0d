"""Copying: whether generated images are nearer to training images than to others of the same site.

Shapes: M generated images, N real ones (members, then others), (., C, R, R) in [-1, 1].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from relay_core.bundle import PERMUTATIONS
from relay_core.privacy.attacks import Tick
from relay_core.privacy.statistics import Groups, permuted_members
from relay_core.replay import resize_images, resize_labels

SIDE = 32
"""Side, at most, at which pixels are compared."""
SHIFTS = (-2, 0, 2)
COMPARISONS = 4 * len(SHIFTS) ** 2
"""How often images are compared, moved each time, for `pixel_distances`."""
CLOSE = 0.01
"""Share of the generated images that are as near to images that nobody trained on, by choice of the distance."""
DUPLICATE = 1 / 3
"""A duplicate is nearer than so much of the distance at which 1 % of the images have their nearest of another patient."""
SPLITS = 2
"""Subsets of the larger side, of the smaller one's size, that are averaged: the more images, the nearer is the nearest."""


def pixel_distances(generated: Tensor, real: Tensor, tick: Tick) -> Tensor:
    """Return the distance (M, N) of each pair of images, aligned: the smallest over flips and shifts by two pixels.

    Root mean square difference of pixels, at `SIDE` pixels at most.
    """
    side = min(SIDE, real.shape[-1])
    made, known = resize_images(generated, side).flatten(1), resize_images(real, side)
    squares = made.square().sum(dim=1)[:, None]
    best = torch.full((len(made), len(known)), torch.inf)
    for flips in ((), (2,), (3,), (2, 3)):
        for down in SHIFTS:
            for right in SHIFTS:
                moved = known.flip(flips).roll((down, right), (2, 3)).flatten(1)
                distances = squares + moved.square().sum(dim=1)[None] - 2 * made @ moved.T
                best = torch.minimum(best, distances)
                tick()
    return (best.clamp(min=0) / made.shape[1]).sqrt()


def map_distances(generated: Tensor, real: Tensor, classes: int) -> Tensor:
    """Return the distance (M, N) of each pair of label maps: 1 less the mean Dice of the foreground classes.

    Compared at `SIDE` pixels at most; a class that is in neither map counts as equal.

    Args:
        generated: class ids (M, R, R), 0 to classes - 1.
        real: class ids (N, R, R).
        classes: number of classes with the background, 2 or more.
    """
    side = min(SIDE, real.shape[-1])
    made, known = (
        torch.cat([resize_labels(part.long(), side, classes) for part in ids.split(256)]).flatten(1)
        for ids in (generated, real)
    )
    dice = torch.zeros(len(made), len(known))
    for number in range(1, classes):
        one, other = (made == number).float(), (known == number).float()
        sizes = one.sum(dim=1)[:, None] + other.sum(dim=1)[None]
        dice += torch.where(sizes > 0, 2 * (one @ other.T) / sizes.clamp(min=1), 1.0)
    return 1 - dice / (classes - 1)


def copying(distances: Tensor, between: Tensor, groups: Groups, seed: int = 0) -> dict[str, Any]:
    """Return whether generated images are nearer to members than they would be if it were luck who is a member.

    `nearest_member`: share of generated images whose nearest image is a member's, beside the `expected`, with `nearest_p`.
    `close`: share of them nearer to a member than all but 1 % are to a non-member, equally many of both, with `close_p`
    (patients permuted, one-sided); `control` is that 1 %. `duplicates`: share of the members of which there is a duplicate,
    a generated image much nearer than the nearest image of another patient is, and `other_duplicates`, of the others: a few
    copies among many members are no evidence to a permutation, however exact they are.

    Args:
        distances: (M, N), of each generated image to each real one.
        between: (N, N), of the real ones to each other.
        groups: which of the real images are members.
        seed: of permutations and subsets.
    """
    rng = np.random.default_rng(seed)
    matrix = distances.numpy()
    wins = np.bincount(matrix.argmin(axis=1), minlength=matrix.shape[1]) / len(matrix)
    nearest, close = float(wins[groups.member].sum()), _close(matrix, groups.member, rng)
    shuffled = permuted_members(groups, rng, PERMUTATIONS)
    chance = np.array([wins[member].sum() for member in shuffled])
    chance_close = np.array([_close(matrix, member, rng) for member in shuffled])
    same = torch.from_numpy(groups.patient[:, None] == groups.patient[None])
    nearest_other = between.masked_fill(same, torch.inf).min(dim=1).values.numpy()
    duplicated = matrix.min(axis=0) < DUPLICATE * np.quantile(nearest_other, CLOSE)
    return {
        "generated": len(matrix),
        "nearest_member": nearest,
        "expected": float(chance.mean()),
        "nearest_p": float((1 + (chance >= nearest - 1e-12).sum()) / (PERMUTATIONS + 1)),
        "close": close,
        "control": CLOSE,
        "close_p": float((1 + (chance_close >= close - 1e-12).sum()) / (PERMUTATIONS + 1)),
        "duplicates": float(duplicated[groups.member].mean()),
        "other_duplicates": float(duplicated[~groups.member].mean()),
    }


def _close(matrix: np.ndarray, member: np.ndarray, rng: np.random.Generator) -> float:
    members, others = np.flatnonzero(member), np.flatnonzero(~member)
    count = min(len(members), len(others))
    shares = []
    for _ in range(SPLITS):
        near, far = (matrix[:, rng.choice(each, count, replace=False)].min(axis=1) for each in (members, others))
        shares.append((near < np.quantile(far, CLOSE)).mean())
    return float(np.mean(shares))


def closest_pairs(distances: Tensor, members: int, count: int = 16) -> list[tuple[int, int]]:
    """Return the (generated, member) pairs that are nearest, each generated image and each member at most once."""
    nearest, place = distances[:, :members].min(dim=1)
    pairs: list[tuple[int, int]] = []
    seen: set[int] = set()
    for number in nearest.argsort().tolist():
        member = int(place[number])
        if member not in seen:
            seen.add(member)
            pairs.append((number, member))
        if len(pairs) == count:
            break
    return pairs
