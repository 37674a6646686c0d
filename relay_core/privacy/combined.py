"""What attacks tell: each of them beside its control, and all together, tested on patients that none has seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from relay_core.bundle import PERMUTATIONS, holm
from relay_core.privacy.statistics import (
    Draws,
    Groups,
    Scores,
    attack_scores,
    auc,
    beyond,
    epsilon_bound,
    permuted_members,
    true_positive_rate,
    two_sided,
)

FOLDS = 5
RIDGE = 0.1
"""Weight decay of the discriminant, in parts of the number of images."""
CONTROL = 0.05
"""How surely a control has to tell the two sides apart until its attack does not count."""


def judged(
    own: dict[str, Scores], other: dict[str, Scores], groups: Groups, fair: npt.NDArray[np.bool_]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return each attack, raw and calibrated by the reference, and all together.

    With all together stands `epsilon`, their `epsilon_bound`; None where the sides differ by themselves.

    The reference never saw the members: where its scores tell the two sides apart (`control`, either way, Holm 1979 over all
    of them), the sides differ by themselves. Then an attack does not count (`counts`), raw or calibrated, as the difference
    shows in both networks, and not equally; one without a reference's scores does not count if any other control finds it.
    A difference too small for that can still look like a find: so a raw attack's `p` and `tpr_p` are also at least those by
    which it finds more than the reference does (`beyond`).

    Args:
        own: the scores (N,) of each attack, by name.
        other: those of the reference, for attacks that it allows.
        groups: which of the N images are members.
        fair: the images (N,) that the reference never saw: the others are left out of all that is compared with it.
    """
    part = Groups(groups.member[fair], np.unique(groups.patient[fair], return_inverse=True)[1])
    all_draws, part_draws = Draws.of(groups), Draws.of(part)
    names = [name for name in other if name in own]
    controls = {name: two_sided(other[name][fair], part, part_draws) for name in names}
    adjusted = dict(zip(names, holm([control["p"] for control in controls.values()]), strict=True))
    rows: list[dict[str, Any]] = []
    features: dict[str, Scores] = {}
    for name, scores in own.items():
        counts = min([adjusted[name]] if name in adjusted else [1.0, *adjusted.values()]) >= CONTROL
        row = {"name": name, "calibrated": False, "counts": counts, **attack_scores(scores, groups, all_draws)}
        if name in controls:
            more = beyond(scores[fair], other[name][fair], part, part_draws)
            row |= {key: max(row[key], p) for key, p in more.items()}
        rows.append({**row, "control": controls.get(name)})
        tried = {name: scores[fair]}
        if name in other:
            title = f"{name}, calibrated"
            tried[title] = (scores - other[name])[fair]
            rows.append(
                {"name": title, "calibrated": True, "counts": counts, **attack_scores(tried[title], part, part_draws)}
            )
        features |= tried if counts else {}
    left = features or {name: own[name][fair] for name in own}
    together = combined_attack(np.stack([*left.values()], axis=1), part, part_draws)
    bound = epsilon_bound(features, part) if all(row["counts"] for row in rows) else None
    return rows, {"name": "all together", "counts": bool(features), **together, "epsilon": bound}


def combined_attack(features: Scores, groups: Groups, draws: Draws | None = None, seed: int = 0) -> dict[str, Any]:
    """Return what the scores of all attacks (N, K) tell together, as `attack_scores` does of one.

    The strongest attacker knows of some patients whether they were members (Nasr 2019, arXiv 1812.00910): Fisher's
    discriminant is fitted to four fifths of the patients, and scores the others. What luck does to that, which is fitted
    anew whoever is a member, is measured by permutations with folds of their own: `p` and `tpr_p` are theirs; where they are
    not around 0.5 on average `auc` is shifted by as much; and the interval is as much wider than one of fixed scores as they
    vary more.
    """
    rng = np.random.default_rng(seed)
    draws = draws or Draws.of(groups, seed)
    standard = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9)
    scores = _scored(standard, groups, rng)
    result = attack_scores(scores, groups, draws)
    chance, rates = [], []
    for member in permuted_members(groups, rng, PERMUTATIONS):
        permuted = Groups(member, groups.patient)
        weights = member.astype(float)[None], (~member).astype(float)[None]
        again = _scored(standard, permuted, rng)
        chance.append(float(auc(again, *weights)[0]))
        rates.append(float(true_positive_rate(again, *weights, result["at_fpr"])[0]))
    found, wider = result["auc"], float(np.std(chance) / max(1e-9, auc(scores, *draws.permuted).std()))
    shift = 0.5 - float(np.mean(chance))
    interval = [found + max(1.0, wider) * (bound - found) for bound in result["auc_interval"]]
    result["auc"], *result["auc_interval"] = (min(1.0, max(0.0, value + shift)) for value in (found, *interval))
    result["p"], result["tpr_p"] = (
        float((1 + (np.array(luck) >= value - 1e-12).sum()) / (PERMUTATIONS + 1))
        for luck, value in ((chance, found), (rates, result["tpr"]))
    )
    result["detectable_auc"] = min(1.0, 0.5 + max(1.0, wider) * (result["detectable_auc"] - 0.5))
    return result


def _folds(groups: Groups, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The fold of each image: whole patients of both sides in each."""
    fold = np.zeros(len(groups.member), np.int64)
    for side in (True, False):
        for number, patient in enumerate(rng.permutation(groups.patients(side))):
            fold[groups.patient == patient] = number % FOLDS
    return fold


def _scored(features: Scores, groups: Groups, rng: np.random.Generator) -> Scores:
    """Scores (N,) of each image by the discriminant of the other folds; ranks within a fold, so that folds compare."""
    folds, result = _folds(groups, rng), np.zeros(len(features))
    for number in range(FOLDS):
        held = folds == number
        x, y = features[~held], groups.member[~held]
        means = x[y].mean(axis=0), x[~y].mean(axis=0)
        centred = x - np.where(y[:, None], *means)
        within = centred.T @ centred / len(x) + RIDGE * np.eye(x.shape[1])
        weights = np.linalg.solve(within, means[0] - means[1])
        if held.any():
            result[held] = ((features[held] @ weights).argsort().argsort() + 0.5) / held.sum()
    return result
