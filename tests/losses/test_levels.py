"""Deep supervision: labels at other sizes, and the weights of the levels."""

import pytest
import torch

from relay_core.losses import at_size, over_levels


def test_labels_at_half_the_size_are_taken_from_the_middle_of_each_pixel():
    labels = torch.arange(64).view(1, 8, 8)  # ids that say where they are
    assert at_size(labels, (8, 8)).equal(labels)
    assert at_size(labels, (4, 4)).equal(labels[:, 1::2, 1::2])
    assert at_size(labels, (2, 2)).equal(labels[:, 2::4, 2::4])
    odd = at_size(labels[:, :7, :5], (3, 2))  # as convolutions of stride 2 leave them
    assert odd.equal(labels[:, [1, 3, 5]][:, :, [1, 3]])
    assert odd.dtype == torch.long


def test_each_level_weighs_half_of_the_finer_one():
    losses = [torch.tensor(value) for value in (8.0, 4.0, 2.0)]
    assert over_levels(losses) == pytest.approx((8 + 4 / 2 + 2 / 4) / 1.75)
    assert over_levels([torch.tensor(5.0)] * 4) == pytest.approx(5)
    assert over_levels(losses[:1]) == 8
