"""The crop is that of the lungs, whatever else holds air."""

import numpy as np
import pytest

from relay_core.preparation.crop import lung_box
from tests.preparation.phantoms import LUNGS, SPACING, chest, ellipse


def with_margin(mm):
    return tuple(
        (low - int(np.ceil(mm / space)), high + int(np.ceil(mm / space)))
        for (low, high), space in zip(LUNGS, SPACING, strict=True)
    )


def test_the_box_is_that_of_the_lungs():
    assert lung_box(chest(), SPACING, 0) == LUNGS
    assert lung_box(chest(), SPACING, 10) == with_margin(10)
    assert lung_box(chest(), SPACING, 1000) == ((0, 24), (0, 96), (0, 96)), "it ends where the volume ends"


def test_table_and_outside_air_do_not_count():
    assert lung_box(chest(table=False), SPACING, 0) == LUNGS
    padded = np.pad(chest(), ((0, 0), (20, 10), (0, 30)), constant_values=-3024)
    shifted = LUNGS[0], (LUNGS[1][0] + 20, LUNGS[1][1] + 20), LUNGS[2]
    assert lung_box(padded, SPACING, 0) == shifted


def test_lungs_that_reach_the_ends_of_the_volume_are_found():
    assert lung_box(chest()[6:15], SPACING, 0) == ((0, 9), *LUNGS[1:])


def test_the_windpipe_that_opens_into_the_lungs_does_not_count():
    volume = chest()
    volume[10, 40:43, 36:60] = -900
    assert lung_box(volume, SPACING, 0) == LUNGS


def test_a_little_gas_is_no_second_lung():
    volume = chest()
    volume[:, ellipse(48, 66, 19, 13)] = 40  # the other lung is collapsed
    volume[21:23, ellipse(60, 66, 6, 6)] = -900  # and the stomach is not
    assert lung_box(volume, SPACING, 0) == ((4, 20), LUNGS[1], (18, 43))


def test_a_fine_volume_is_looked_at_coarsely_and_cut_finely():
    fine = np.repeat(np.repeat(chest(), 3, axis=1), 3, axis=2)
    box = lung_box(fine, (5.0, 1.0, 1.0), 0)
    assert box is not None
    for (low, high), (first, last), by in zip(box, LUNGS, (1, 3, 3), strict=True):
        assert abs(low - first * by) <= 2
        assert abs(high - last * by) <= 2


@pytest.mark.parametrize("volume", [np.full((4, 20, 20), 40), np.full((4, 20, 20), -1000)])
def test_where_no_lungs_are_there_is_no_box(volume):
    assert lung_box(volume, SPACING, 10) is None


def test_bowel_gas_alone_is_no_lung():
    volume = np.full((24, 96, 96), -1000, np.int16)
    volume[:, ellipse(48, 48, 33, 42)] = 40
    volume[10:12, ellipse(48, 48, 5, 5)] = -900
    assert lung_box(volume, SPACING, 10) is None
