"""Each way of choosing slices."""

import pytest

from relay_core.errors import RelayError
from relay_core.preparation.selection import Selection

AREAS = [0, 5, 9, 9, 1, 0, 0, 7, 0, 0]


@pytest.mark.parametrize(
    ("selection", "kept"),
    [
        (Selection(), [1, 2, 3, 4, 7]),
        (Selection("area", 2), [2, 3]),
        (Selection("area", 1), [2]),
        (Selection("area", 3), [2, 3, 7]),
        (Selection("share", 0.4), [2, 3]),
        (Selection("share"), [2, 3, 7]),
        (Selection("share", 1), [1, 2, 3, 4, 7]),
        (Selection("share", 0.01), [2]),
        (Selection("threshold", 7), [2, 3, 7]),
        (Selection("threshold"), [1, 2, 3, 4, 7]),
        (Selection("threshold", 100), []),
        (Selection("all"), list(range(10))),
        (Selection("area", 1, negatives=1), [2, 6]),
        (Selection("area", 1, negatives=2), [2, 5, 8]),
        (Selection("area", 1, negatives=99), [0, 2, 5, 6, 8, 9]),
    ],
)
def test_slices_are_chosen(selection, kept):
    assert selection.choose(AREAS) == kept


def test_an_unlabelled_study_keeps_its_negatives():
    assert Selection().choose([0] * 9) == []
    assert Selection(negatives=3).choose([0] * 9) == [1, 4, 7]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("most",), "area, share, threshold, all"), (("area", 0), "slices"), (("area", 1.5), "slices"),
        (("share", 30), "share"), (("share", 0), "share"), (("threshold", 0.5), "pixels"), (("area", 1, -1), "negatives"),
    ],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(options, word):
    with pytest.raises(RelayError, match=word):
        Selection(*options)
