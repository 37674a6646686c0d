"""What an attack's scores say: how well they tell members from non-members, with intervals over patients.

Members are images that a model was trained on, non-members are others of the same site. The higher the score, the more an
image looks like a member to the attacker. Images of one patient stand and fall together: intervals and tests draw patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
"""Draws of a bootstrap, and permutations of a test."""
CONFIDENCE = 0.95
POWER = 0.8
"""How surely a leak of the size that is named as detectable would have been found."""
FEW = 20
"""Fewest patients on either side from which on anything is said of a site."""
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Groups:
    """Which scores are of members, and which patient each is of.

    Args:
        member: True for a member's score, (N,).
        patient: number of the patient, (N,); a patient is on one side alone.
    """

    member: npt.NDArray[np.bool_]
    patient: npt.NDArray[np.int64]

    @classmethod
    def of(cls, members: Sequence[str], others: Sequence[str]) -> Groups:
        """Return the groups of scores that begin with the members', from the patient of each image."""
        names = [*(f"m{name}" for name in members), *(f"n{name}" for name in others)]
        _, patient = np.unique(names, return_inverse=True)
        return cls(np.arange(len(names)) < len(members), patient)

    def patients(self, member: bool) -> npt.NDArray[np.int64]:
        """Return the numbers of the patients of one side."""
        return np.unique(self.patient[self.member == member])

    @property
    def few(self) -> int:
        """The number of patients on the side that has fewer."""
        return min(len(self.patients(True)), len(self.patients(False)))


def auc(scores: Scores, member_weight: Scores, other_weight: Scores) -> Scores:
    """Return the area under the ROC curve, P(member > other) + P(equal) / 2, for each row of weights.

    Args:
        scores: N scores.
        member_weight: how often each score counts as a member's, (B, N).
        other_weight: how often as a non-member's, (B, N).
    """
    members, others = _by_score(scores, member_weight, other_weight)
    below = np.cumsum(others, axis=1) - others
    won = (members * (below + others / 2)).sum(axis=1)
    return won / (members.sum(axis=1) * others.sum(axis=1))


def true_positive_rate(scores: Scores, member_weight: Scores, other_weight: Scores, level: float) -> Scores:
    """Return the share of members above a threshold that at most `level` of the others are above, by row of weights."""
    members, others = (weights[:, ::-1] for weights in _by_score(scores, member_weight, other_weight))
    allowed = np.cumsum(others, axis=1) <= level * others.sum(axis=1, keepdims=True) + 1e-9
    return (members * allowed).sum(axis=1) / members.sum(axis=1)


def _by_score(scores: Scores, *weights: Scores) -> list[Scores]:
    """Weights (B, V), summed over equal scores, in the order of the V different scores."""
    order = scores.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    return [np.add.reduceat(each[:, order], starts, axis=1) for each in weights]


def level_for(patients: int) -> float:
    """Return the false-positive rate to report a true-positive rate at: 1 % needs 300 patients that are no members."""
    return 0.01 if patients >= 300 else 0.05 if patients >= 60 else 0.1


@dataclass(frozen=True)
class Draws:
    """Weights (B, N) of members and of others, as often as patients were drawn: one for all attacks on the same images."""

    bootstrap: tuple[Scores, Scores]
    permuted: tuple[Scores, Scores]

    @classmethod
    def of(cls, groups: Groups, seed: int = 0, resamples: int = RESAMPLES) -> Draws:
        """Draw the patients of each side anew, and which of all are members."""
        rng = np.random.default_rng(seed)
        return cls(_bootstrap(groups, rng, resamples), _permuted(groups, rng, resamples))


def attack_scores(scores: Scores, groups: Groups, draws: Draws | None = None) -> dict[str, Any]:
    """Return what one attack's scores (N,) tell of membership.

    `auc` and `auc_interval` (95 %, bootstrap over patients), `p` (members score as high by luck: patients permuted), `tpr`,
    `tpr_interval`, `at_fpr`, `tpr_p`, and `detectable_auc`: the AUC that this test finds with a probability of 80 %.
    """
    draws = draws or Draws.of(groups)
    whole = (groups.member.astype(float)[None], (~groups.member).astype(float)[None])
    level = level_for(len(groups.patients(False)))
    point, rate = float(auc(scores, *whole)[0]), float(true_positive_rate(scores, *whole, level)[0])
    aucs, rates = auc(scores, *draws.bootstrap), true_positive_rate(scores, *draws.bootstrap, level)
    chance, chance_rates = auc(scores, *draws.permuted), true_positive_rate(scores, *draws.permuted, level)
    resamples = len(chance)
    return {
        "auc": point,
        "auc_interval": _interval(aucs),
        "p": float((1 + (chance >= point - 1e-12).sum()) / (resamples + 1)),
        "tpr": rate,
        "tpr_interval": _interval(rates),
        "at_fpr": level,
        "tpr_p": float((1 + (chance_rates >= rate - 1e-12).sum()) / (resamples + 1)),
        "detectable_auc": float(0.5 + (_quantile(CONFIDENCE) + _quantile(POWER)) * chance.std()),
    }


def two_sided(scores: Scores, groups: Groups, draws: Draws) -> dict[str, float]:
    """Return the `auc` of scores (N,) and `p`, that it is by luck as far from 0.5, above or below."""
    whole = (groups.member.astype(float)[None], (~groups.member).astype(float)[None])
    point, chance = float(auc(scores, *whole)[0]), auc(scores, *draws.permuted)
    return {"auc": point, "p": float((1 + (abs(chance - 0.5) >= abs(point - 0.5) - 1e-12).sum()) / (len(chance) + 1))}


def beyond(own: Scores, other: Scores, groups: Groups, draws: Draws) -> dict[str, float]:
    """Return how surely scores (N,) tell more of membership than those of a network that never saw the members.

    `p` of the areas under both curves, `tpr_p` of the true-positive rates: the share of bootstraps over patients in which
    the own scores tell no more. Where the two sides differ by themselves, both networks tell that.
    """
    level = level_for(len(groups.patients(False)))
    areas = [auc(scores, *draws.bootstrap) for scores in (own, other)]
    rates = [true_positive_rate(scores, *draws.bootstrap, level) for scores in (own, other)]
    return {
        name: float((1 + (mine <= its + 1e-12).sum()) / (len(mine) + 1))
        for name, (mine, its) in (("p", areas), ("tpr_p", rates))
    }


def epsilon_bound(attacks: Mapping[str, Scores], groups: Groups, seed: int = 0) -> dict[str, Any]:
    """Return the smallest epsilon of differential privacy that the attacks leave possible, with a confidence of 95 %.

    Each patient of the smaller side is paired with one of the other by luck, and of each pair the one with the higher mean
    score is guessed to be the member. If luck alone decided who was trained on, and the training is differentially private
    with an epsilon for exchanging a patient, each guess is right with a probability of at most
    exp(epsilon) / (1 + exp(epsilon)), whatever the others are, so the number of right ones is at most binomial (Steinke
    2023, arXiv 2305.08846, theorem 5.2; its canaries are these patients). Each attack guesses for all pairs and for the
    surest quarter; the confidence is shared out over all of these (Bonferroni).

    Returns:
        `epsilon`, 0 where nothing is found; `attack`, `guesses` and `right` of the one that shows it.
    """
    rng, count = np.random.default_rng(seed), groups.few
    members, others = (rng.permutation(groups.patients(side))[:count] for side in (True, False))
    sizes = (count, max(1, count // 4))
    bounds = []
    for name, scores in attacks.items():
        of_patient = np.bincount(groups.patient, scores) / np.bincount(groups.patient)
        gaps = of_patient[members] - of_patient[others]
        surest_first = (-abs(gaps)).argsort(kind="stable")
        for guesses in sizes:
            right = int((gaps[surest_first[:guesses]] > 0).sum())
            share = _lowest_share(right, guesses, (1 - CONFIDENCE) / (len(sizes) * len(attacks)))
            epsilon = float(np.log(share / (1 - share))) if share > 0.5 else 0.0
            bounds.append({"epsilon": epsilon, "attack": name, "guesses": guesses, "right": right})
    return max(bounds, key=lambda bound: bound["epsilon"])


def _lowest_share(right: int, guesses: int, alpha: float) -> float:
    """The smallest probability of a right guess at which so many are right with a probability of `alpha` (Clopper 1934)."""
    from scipy.stats import beta

    return float(beta.ppf(alpha, right, guesses - right + 1)) if right else 0.0


def _interval(values: Scores) -> list[float]:
    tail = 100 * (1 - CONFIDENCE) / 2
    return [float(bound) for bound in np.percentile(values, [tail, 100 - tail])]


def _quantile(probability: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(probability))


def _bootstrap(groups: Groups, rng: np.random.Generator, resamples: int) -> tuple[Scores, Scores]:
    """Weights of members and non-members where the patients of each side are drawn anew."""
    weights = []
    for side in (True, False):
        patients = groups.patients(side)
        times = rng.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), resamples)
        by_patient = np.zeros((resamples, int(groups.patient.max()) + 1))
        by_patient[:, patients] = times
        weights.append(by_patient[:, groups.patient] * (groups.member == side))
    return weights[0], weights[1]


def _permuted(groups: Groups, rng: np.random.Generator, resamples: int) -> tuple[Scores, Scores]:
    """Weights where it is drawn anew which patients are members."""
    member = permuted_members(groups, rng, resamples).astype(float)
    return member, 1 - member


def permuted_members(groups: Groups, rng: np.random.Generator, count: int) -> npt.NDArray[np.bool_]:
    """Return `count` draws (count, N) of which images are members, where patients change sides by luck."""
    sides = np.zeros(int(groups.patient.max()) + 1, bool)
    sides[groups.patients(True)] = True
    return np.stack([rng.permutation(sides)[groups.patient] for _ in range(count)])
