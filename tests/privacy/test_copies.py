"""Copies: a generator that is a table of its training images is found, one that draws anew is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from relay_core.privacy.combined import combined_attack, judged
from relay_core.privacy.copies import closest_pairs, copying, map_distances, pixel_distances
from relay_core.privacy.statistics import Groups

MEMBERS, OTHERS = 60, 40


def groups() -> Groups:
    return Groups.of([f"a{i}" for i in range(MEMBERS)], [f"b{i}" for i in range(OTHERS)])


def blobs(count: int, seed: int) -> torch.Tensor:
    """Images of one disc each, of random place, size and colour."""
    generator = torch.Generator().manual_seed(seed)
    place, size = torch.rand(count, 2, 1, 1, generator=generator), torch.rand(count, 1, 1, generator=generator)
    colour = torch.rand(count, 3, 1, 1, generator=generator)
    line = torch.linspace(0, 1, 16)
    inside = (line[:, None] - place[:, 0]).square() + (line[None] - place[:, 1]).square() < (0.1 + 0.3 * size).square()
    return torch.where(inside[:, None], colour, -colour)


def real() -> torch.Tensor:
    return blobs(MEMBERS + OTHERS, 0)


def copied(generated: torch.Tensor, images: torch.Tensor, seed: int = 0) -> dict[str, Any]:
    distances, between = (pixel_distances(each, images, lambda: None) for each in (generated, images))
    return copying(distances, between, groups(), seed)


def test_a_lookup_table_of_training_images_is_found():
    images = real()
    table = images[torch.arange(300) % MEMBERS] + 0.02 * torch.randn(300, 3, 16, 16)
    moved = table.flip(3).roll(2, 2)
    for generated in (table, moved):
        found = copied(generated, images)
        assert found["nearest_member"] > 0.95
        assert found["nearest_p"] < 0.01
        assert found["close_p"] < 0.01
        assert found["close"] > 0.5


def test_one_that_draws_anew_is_not():
    p_values = []
    for seed in range(20):
        found = copied(blobs(200, 100 + seed), real(), seed)
        assert found["duplicates"] == 0
        p_values.append(min(found["nearest_p"], found["close_p"]))
    assert np.mean(np.array(p_values) < 0.025) <= 0.15


def test_a_few_images_that_are_copied_are_found_among_many_new_ones():
    images = real()
    generated = torch.cat([blobs(180, 7), images[:5].repeat(4, 1, 1, 1)])
    found = copied(generated, images)
    assert found["close"] > 0.05 > found["control"]
    assert found["duplicates"] == pytest.approx(5 / MEMBERS)
    assert found["other_duplicates"] == 0


def test_the_closest_pairs_name_each_training_image_once():
    images = real()
    generated = torch.cat([blobs(50, 3), images[[4, 9, 4]]])
    pairs = closest_pairs(pixel_distances(generated, images, lambda: None), MEMBERS, 10)
    assert {pairs[0][1], pairs[1][1]} == {4, 9}
    members = [member for _, member in pairs]
    assert len(members) == len(set(members)) == 10
    assert max(members) < MEMBERS


def test_all_attacks_together_say_nothing_where_none_does_and_find_what_several_show():
    noise = [combined_attack(np.random.default_rng(seed).normal(size=(100, 6)), groups(), seed=seed) for seed in range(10)]
    assert np.mean([each["auc"] for each in noise]) == pytest.approx(0.5, abs=0.04), "by luck as often above as below"
    assert np.mean([each["p"] < 0.05 for each in noise]) <= 0.2
    covered = np.mean([each["auc_interval"][0] <= 0.5 <= each["auc_interval"][1] for each in noise])
    assert covered >= 0.8, "refitting varies more than fixed scores do"
    weak = np.random.default_rng(5).normal(size=(100, 6))
    weak[:MEMBERS] += 0.6
    found = combined_attack(weak, groups())
    assert found["auc"] > 0.75
    assert found["p"] < 0.01
    assert found["auc_interval"][0] > 0.5


def test_two_sets_that_differ_by_themselves_are_no_leak():
    """Another scanner: the reference, which never saw the members, tells them apart as well."""
    rng = np.random.default_rng(2)
    shifted = {name: rng.normal(size=100) + np.where(groups().member, 1.5, 0) for name in ("solver", "D_img")}
    own = {name: values + 0.1 * rng.normal(size=100) for name, values in shifted.items()}
    rows, combined = judged(own, shifted, groups(), np.ones(100, bool))
    assert not any(row["counts"] for row in [*rows, combined])
    opposite = {name: -values for name, values in shifted.items()}  # members are the harder ones: as bad
    rows, combined = judged(own, opposite, groups(), np.ones(100, bool))
    assert not any(row["counts"] for row in [*rows, combined])
    alike = {name: rng.normal(size=100) for name in shifted}
    rows, combined = judged(own, alike, groups(), np.ones(100, bool))
    assert all(row["counts"] for row in [*rows, combined])


def test_label_maps_are_compared_by_dice() -> None:
    left, right, empty = torch.zeros(3, 4, 4, dtype=torch.int16).unbind()
    left[:2], right[2:] = 1, 1
    both = left + 2 * right
    distances = map_distances(torch.stack([left, both]), torch.stack([left, right, empty]).long(), 3)
    assert distances[0].tolist() == [0.0, 0.5, 0.5], "class 2 is in neither, and counts as equal"
    assert distances[1].tolist() == [0.5, 1.0, 1.0]
    large = torch.zeros(1, 64, 64, dtype=torch.int16)
    large[:, :, :32] = 1
    assert map_distances(large, large.long(), 2).item() == 0
