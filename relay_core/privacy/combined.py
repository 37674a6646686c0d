"""All attacks together: a linear discriminant of their scores, tested on patients that it has not seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from relay_core.privacy.statistics import Draws, Groups, Scores, attack_scores, auc, permuted_members

FOLDS = 5
RIDGE = 0.1
"""Weight decay of the discriminant, in parts of the number of images."""
PERMUTATIONS = 500


def combined_attack(features: Scores, groups: Groups, draws: Draws | None = None, seed: int = 0) -> dict[str, Any]:
    """Return what the scores of all attacks (N, K) tell together, as `attack_scores` does of one.

    The strongest attacker knows of some patients whether they were members (Nasr 2019, arXiv 1812.00910): Fisher's
    discriminant is fitted to four fifths of the patients, and scores the others. Where nothing can be known such
    cross-validation scores below chance, since a fold's patients are missed where the weights are made. How much below is
    measured, by permutations that are fitted anew; `auc` and its interval are moved up by it, and `p` is theirs.
    """
    rng = np.random.default_rng(seed)
    folds = _folds(groups, rng)
    standard = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9)
    scores = _scored(standard, groups.member, folds)
    result = attack_scores(scores, groups, draws)
    found = _auc(scores, groups.member)
    chance = np.array([
        _auc(_scored(standard, member, folds), member) for member in permuted_members(groups, rng, PERMUTATIONS)
    ])  # fmt: skip
    shift = 0.5 - float(chance.mean())
    result["auc"], *result["auc_interval"] = (
        min(1.0, max(0.0, value + shift)) for value in (result["auc"], *result["auc_interval"])
    )
    result["p"] = float((1 + (chance >= found - 1e-12).sum()) / (PERMUTATIONS + 1))
    return result


def _folds(groups: Groups, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The fold of each image: whole patients of both sides in each."""
    fold = np.zeros(len(groups.member), np.int64)
    for side in (True, False):
        for number, patient in enumerate(rng.permutation(groups.patients(side))):
            fold[groups.patient == patient] = number % FOLDS
    return fold


def _scored(features: Scores, member: npt.NDArray[np.bool_], folds: npt.NDArray[np.int64]) -> Scores:
    """Scores (N,) of each image by the discriminant of the other folds; ranks within a fold, so that folds compare."""
    result = np.zeros(len(features))
    for number in range(FOLDS):
        held = folds == number
        x, y = features[~held], member[~held]
        centred = x - np.where(y[:, None], x[y].mean(axis=0), x[~y].mean(axis=0))
        within = centred.T @ centred / len(x) + RIDGE * np.eye(x.shape[1])
        weights = np.linalg.solve(within, x[y].mean(axis=0) - x[~y].mean(axis=0))
        result[held] = ((features[held] @ weights).argsort().argsort() + 0.5) / held.sum()
    return result


def _auc(scores: Scores, member: npt.NDArray[np.bool_]) -> float:
    return float(auc(scores, member.astype(float)[None], (~member).astype(float)[None])[0])
