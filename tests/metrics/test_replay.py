"""What is said of a replay: coverage by features, variety and shapes of label maps, agreement."""

import pytest
import torch

from relay_core.metrics.replay import agreement, coverage_scores, foreground_dice, map_scores


def points(n, shift=0.0, seed=0, spread=1.0):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) * spread + shift


def disc(radius, side=32, centre=16.0):
    axis = torch.arange(side) + 0.5 - centre
    return ((axis[:, None] ** 2 + axis[None] ** 2) <= radius**2).long()


def test_alike_sets_cover_each_other_and_distant_ones_do_not():
    same = coverage_scores(points(200), points(200, seed=1))
    assert all(0.85 < same[name] <= 1 for name in ("precision", "recall", "coverage"))
    assert same["density"] == pytest.approx(1, abs=0.15)
    itself = coverage_scores(points(50), points(50))
    assert itself["precision"] == itself["recall"] == itself["coverage"] == 1
    assert set(coverage_scores(points(50), points(50, shift=100.0)).values()) == {0.0}


def test_few_and_narrow_samples_are_precise_and_cover_little():
    narrow = coverage_scores(points(200), points(200, seed=1, spread=0.05))
    assert narrow["precision"] > 0.9
    assert narrow["recall"] < 0.1
    assert narrow["coverage"] < 0.3
    assert coverage_scores(points(2), points(3, seed=1)).keys() == narrow.keys()  # k shrinks with the sets


def test_one_map_over_and_over_is_told_from_many():
    one = map_scores(disc(8).expand(10, 32, 32), 2)
    many = map_scores(torch.stack([disc(4 + i, centre=10.0 + i) for i in range(10)]), 2)
    assert one["pairwise_dice"] == 1
    assert many["pairwise_dice"] < 0.8
    assert (one["area_spread"], many["area_spread"][0] > 0.05) == ([0.0], True)
    assert one["area"][0] == pytest.approx(3.1416 * 64 / 1024, rel=0.05)
    many_pairs = map_scores(torch.stack([disc(4 + i % 9) for i in range(80)]), 2)  # more pairs than are compared
    assert 0.3 < many_pairs["pairwise_dice"] < 0.95


def test_frayed_and_broken_maps_are_told_from_whole_ones():
    whole, broken = disc(9), disc(9)
    broken[::2, ::2] = 0
    broken[14:18] = 0
    good, bad = (map_scores(each[None].expand(2, 32, 32), 3) for each in (whole, broken))
    assert (good["pieces"], good["raggedness"][0]) == ([1.0, None], pytest.approx(1.0, abs=0.12))
    assert bad["pieces"][0] >= 2
    assert bad["raggedness"][0] > 2
    assert (good["present"], good["area"][1]) == ([1.0, 0.0], None)  # the second class is nowhere


def test_agreement_is_dice_of_answers_and_maps():
    maps = torch.stack([disc(8), disc(8), torch.zeros(32, 32, dtype=torch.long)])
    assert agreement(maps, maps, 2) == 1
    assert agreement(torch.zeros_like(maps), maps, 2) == pytest.approx(1 / 3)
    half = foreground_dice(disc(8).numpy(), disc(4).numpy(), 2)
    assert half == pytest.approx(2 * 16 / (64 + 16), abs=0.05)
