"""Statistics of membership: right values by hand and by scipy, and how often they are wrong by luck."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from relay_core.bundle.audit import holm
from relay_core.privacy.combined import judged
from relay_core.privacy.statistics import Draws, Groups, attack_scores, auc, epsilon_bound, level_for, true_positive_rate


def weights(member: list[int]) -> tuple[np.ndarray, np.ndarray]:
    mask = np.array(member, float)[None]
    return mask, 1 - mask


def test_auc_counts_ties_half() -> None:
    scores = np.array([3.0, 1.0, 1.0, 0.0])
    assert auc(scores, *weights([1, 1, 0, 0]))[0] == pytest.approx((2 + 1.5) / 4)


def test_auc_is_that_of_scipy_and_follows_weights() -> None:
    rng = np.random.default_rng(0)
    scores, member = rng.integers(0, 9, 80).astype(float), rng.random(80) < 0.4
    expected = mannwhitneyu(scores[member], scores[~member]).statistic / (member.sum() * (~member).sum())
    once = weights(member.astype(int).tolist())
    assert auc(scores, *once)[0] == pytest.approx(expected)
    assert auc(scores, once[0] * 3, once[1])[0] == pytest.approx(expected)


def test_true_positive_rate_has_a_threshold_of_its_own_level() -> None:
    scores = np.array([10.0, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    member = [1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert true_positive_rate(scores, *weights(member), 0.05)[0] == pytest.approx(1 / 3)
    assert true_positive_rate(scores, *weights(member), 0.13)[0] == pytest.approx(1)
    flat = true_positive_rate(np.zeros(11), *weights(member), 0.05)
    assert flat[0] == 0, "a score that is the same for all tells nobody"


def test_level_needs_enough_patients() -> None:
    assert [level_for(n) for n in (10, 60, 299, 300)] == [0.1, 0.05, 0.05, 0.01]


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5]) == [0.5]


def test_a_plain_leak_is_found_and_bounded() -> None:
    rng = np.random.default_rng(1)
    scores = np.concatenate([rng.normal(1, 1, 100), rng.normal(0, 1, 100)])
    groups = Groups.of([f"a{i}" for i in range(100)], [f"b{i}" for i in range(100)])
    found = attack_scores(scores, groups)
    low, high = found["auc_interval"]
    assert low < 0.76 < high  # of two Gaussians one standard deviation apart
    assert found["p"] < 0.001
    assert 0.5 < found["detectable_auc"] < low


def test_no_leak_is_found_by_luck_as_often_as_stated() -> None:
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        groups = Groups.of([f"a{i}" for i in range(40)], [f"b{i}" for i in range(30)])
        found.append(attack_scores(rng.normal(size=70), groups, Draws.of(groups, seed, 200)))
    alarms = np.mean([each["p"] < 0.05 for each in found])
    assert alarms <= 0.09
    covered = np.mean([each["auc_interval"][0] <= 0.5 <= each["auc_interval"][1] for each in found])
    assert covered >= 0.9


def test_images_of_one_patient_are_no_evidence_of_their_own() -> None:
    """Ten patients a side with twenty alike images each: no more certain than ten images a side."""
    rng = np.random.default_rng(3)
    of_patient = rng.normal(size=20)
    scores = np.repeat(of_patient, 20) + rng.normal(size=400) * 0.01
    many = attack_scores(scores, Groups.of([f"a{i // 20}" for i in range(200)], [f"b{i // 20}" for i in range(200)]))
    once = attack_scores(of_patient, Groups.of([f"a{i}" for i in range(10)], [f"b{i}" for i in range(10)]))
    assert many["detectable_auc"] == pytest.approx(once["detectable_auc"], abs=0.05)
    assert np.diff(many["auc_interval"]) == pytest.approx(np.diff(once["auc_interval"]), abs=0.08)


def test_a_name_that_both_sides_have_is_two_patients() -> None:
    assert Groups.of(["p1"], ["p1"]).few == 1
    assert len(set(Groups.of(["p1"], ["p1"]).patient)) == 2


def test_a_bound_on_epsilon_is_that_of_its_binomial_tail() -> None:
    """Twenty pairs, all guessed right: at the bound that has the probability that two attacks share out."""
    groups = Groups.of([f"a{i}" for i in range(20)], [f"b{i}" for i in range(20)])
    found = epsilon_bound({"sure": groups.member.astype(float)}, groups)
    assert (found["attack"], found["guesses"], found["right"]) == ("sure", 20, 20)
    right = np.exp(found["epsilon"]) / (1 + np.exp(found["epsilon"]))
    assert right**20 == pytest.approx(0.05 / 2)
    flat = epsilon_bound({"flat": np.zeros(40)}, groups)
    assert flat["epsilon"] == 0, "an attack that says nothing proves nothing"


def test_a_bound_on_epsilon_is_above_the_truth_by_luck_in_few_audits() -> None:
    """Randomised response: each patient's side is told, and is wrong with the probability that epsilon 1 allows."""
    groups = Groups.of([f"a{i}" for i in range(60)], [f"b{i}" for i in range(60)])
    bounds = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        told = np.where(rng.random(60) < np.exp(1) / (1 + np.exp(1)), 1.0, -1.0)
        members = groups.patients(True)
        scores = np.zeros(120)
        scores[members] = told  # of the pair of each, whichever it is: the other one scores 0
        bounds.append(epsilon_bound({"response": scores}, groups, seed)["epsilon"])
    assert np.mean(np.array(bounds) > 1) < 0.05
    assert np.mean(bounds) > 0.3


def test_images_of_a_patient_are_one_guess() -> None:
    groups = Groups.of(["a"] * 50 + ["b"] * 50, ["c"] * 50 + ["d"] * 50)
    found = epsilon_bound({"sure": groups.member.astype(float)}, groups)
    assert found["guesses"] <= 2


@pytest.mark.parametrize(("leak", "found"), [(0.0, False), (1.0, True)])
def test_what_the_reference_tells_as_well_is_no_find(leak: float, found: bool) -> None:
    rng = np.random.default_rng(5)
    groups = Groups.of([f"m{i}" for i in range(219)], [f"o{i}" for i in range(80)])
    apart = 0.36 * groups.member  # the two sides differ by themselves: an AUC of 0.6, which both networks tell
    own, other = (apart + rng.normal(0, 1, 299) + extra * groups.member for extra in (leak, 0.0))
    rows, _ = judged({"D_img": own}, {"D_img": other}, groups, np.ones(299, bool))
    raw = rows[0]
    assert attack_scores(own, groups)["p"] < 0.02
    assert (raw["p"] < 0.01, raw["tpr_p"] < 0.05) == (found, found)
