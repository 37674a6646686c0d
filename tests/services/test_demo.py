"""The demo's relay at toy size: two services, a courier, nothing shared but files."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from relay_core.bundle.keys import KeyFolder
from relay_core.config import load_run
from services.local.demo import play
from tests.conftest import Toy
from tests.services.test_up import RELAY


def test_a_courier_carries_a_relay_between_services(tmp_path: Path, phantom_data: Path) -> None:
    shutil.copytree(phantom_data, tmp_path / "phantoms")
    run = load_run(Toy(phantom_data, tmp_path).write(sites=2))
    matrix, hospitals = play(run, tmp_path, "cpu")
    assert (matrix.rows, matrix.columns) == (["Domain1", "Domain2"], ["Domain1", "Domain2"])
    assert all(value is not None for row in matrix.values for value in row)
    assert sorted(path.name for path in (tmp_path / "courier").iterdir()) == [
        "hop-1.relay", "hop-2.relay", "scores-1-at-1.json", "scores-1-at-2.json", "scores-2-at-1.json", "scores-2-at-2.json",
    ]  # fmt: skip
    assert (tmp_path / "result" / "samples.png").stat().st_size > 1000
    for hospital, other in zip(hospitals, ("Domain2", "Domain1"), strict=True):
        assert not (hospital.home / "data" / other).exists()
        assert hospital.process.poll() is not None

    out = tmp_path / "single"  # the same on one machine: the hand-off changes nothing
    command = [*RELAY, "train", str(run.path), "--data-root", str(phantom_data), "--out", str(out), "--device", "cpu"]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    alone = json.loads((out / "evaluation" / "dice_per_sample.json").read_text())
    assert alone["values"][-1] == matrix.values[-1]
    assert KeyFolder(hospitals[0].keys.folder).roster.find("Hospital 2").revoked_at is None
