"""A few random faults at every run of the suite; `python -m tests.services.chaos --faults 200` for more."""

import os
import shutil
from pathlib import Path

import pytest

from tests.services.chaos import play


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_a_site_under_random_faults_keeps_its_promises(tmp_path: Path, phantom_data: Path) -> None:
    counted = play(tmp_path, phantom_data, int(os.environ.get("RELAY_TEST_FAULTS", "8")), seed=7, pause=2.0)
    assert sum(counted["faults"].values()) >= 8
    assert counted["accepted"] >= 1
