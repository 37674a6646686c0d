"""Intervals against scipy and against known values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from relay_core.metrics import bootstrap_interval, intervals, signed_rank, stratified_interval, t_interval


def test_t_interval_equals_scipy():
    values = np.random.default_rng(0).random(17)
    expected = stats.t.interval(0.95, 16, loc=values.mean(), scale=stats.sem(values))
    assert t_interval(values.tolist()) == pytest.approx(expected)


def test_t_interval_of_a_textbook_pair():
    assert t_interval([0.0, 2.0]) == pytest.approx((1 - 12.7062047, 1 + 12.7062047))  # t(0.975, 1) = 12.706, s/sqrt(n) = 1


def test_bootstrap_equals_scipy_closely():
    values = np.random.default_rng(1).random(40)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", random_state=0)
    assert bootstrap_interval(values.tolist()) == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)


def test_bootstrap_is_seeded_and_does_not_depend_on_the_block(monkeypatch):
    values = np.random.default_rng(2).random(10).tolist()
    first = bootstrap_interval(values, draws=300)
    assert first == bootstrap_interval(values, draws=300)
    assert first != bootstrap_interval(values, draws=300, seed=1)
    monkeypatch.setattr(intervals, "_BLOCK", 70)
    assert bootstrap_interval(values, draws=300) == first


def test_constant_values_give_a_point():
    assert t_interval([0.5] * 4) == bootstrap_interval([0.5] * 4) == (0.5, 0.5)


@pytest.mark.parametrize("interval", [t_interval, bootstrap_interval])
def test_too_few_or_bad_values(interval):
    assert interval([]) is None
    assert interval([0.3]) is None
    for bad in ([0.1, float("nan")], [[0.1, 0.2], [0.3, 0.4]]):
        with pytest.raises(ValueError, match="finite"):
            interval(bad)


def test_no_draws():
    with pytest.raises(ValueError, match="draws"):
        bootstrap_interval([0.1, 0.2], draws=0)


def test_strata_count_alike_and_vary_within_themselves():
    assert stratified_interval([[0.1] * 50, [0.3] * 2]) == pytest.approx((0.2, 0.2))
    low, high = stratified_interval([[0.0, 1.0] * 20, [5.0] * 3])
    assert 2.6 < low < 2.75 < high < 2.9
    assert stratified_interval([[0.0, 1.0], [5.0]]) is None  # what one value's spread is nobody knows
    with pytest.raises(ValueError, match="one stratum or more"):
        stratified_interval([])


def test_signed_rank_is_symmetric_and_knows_no_difference():
    assert signed_rank([0.0] * 9) == 1.0
    assert signed_rank([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 2**6)
    assert signed_rank([0.1, -0.2, 0.3]) == signed_rank([-0.1, 0.2, -0.3])
