"""The losses of a few steps of each strategy are those that were recorded: mathematics that changes is seen."""

import json

import pytest

from relay_core.config.strategies import STRATEGIES
from tests.golden.record import CASES, FILE, losses

RECORDED = json.loads(FILE.read_text())


def test_every_strategy_is_recorded():
    assert set(STRATEGIES.builtin) <= set(RECORDED)
    assert RECORDED.keys() == CASES.keys()


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_that_were_recorded(case, phantom_data, tmp_path):
    found = losses(case, phantom_data, tmp_path)
    assert {site: row.keys() for site, row in found.items()} == {site: row.keys() for site, row in RECORDED[case].items()}
    for site, row in found.items():
        for name, values in row.items():
            # processors and versions of torch round differently; a changed formula is off by far more
            assert values == pytest.approx(RECORDED[case][site][name], rel=1e-2, abs=1e-3), (site, name)
