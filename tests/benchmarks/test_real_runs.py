"""The run files of the benchmark on real sites can be trained as they stand."""

import shutil
from pathlib import Path

import pytest
import torch

from relay_core.config import load_run
from relay_core.engine import RelayRun

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data"
SMALL = ["train.num_mimgs=8e-6", "train.batch_size=4", "model.kwargs.solver_kwargs.backbone=plain",
         "model.kwargs.solver_kwargs.base_channels=4"]  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/real").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_run_file_of_the_benchmark_trains(path, tmp_path):
    if not REAL.is_dir():
        pytest.skip("needs the shared folder of real images beside the repository")
    shutil.copytree(path.parent, tmp_path / "real")
    run = load_run(str(tmp_path / "real" / path.name), SMALL)
    matrices = RelayRun(run, tmp_path / "out", REAL / path.stem.partition("-")[0], torch.device("cpu"))()
    main = next(iter(matrices.values()))
    assert main.rows == [site.name for site in run.sites()]
    assert set(main.rows) <= set(main.columns)
    assert all(value is not None for row in main.values for value in row)


def test_the_relay_of_ten_sites_has_ten():
    sites = load_run(str(ROOT / "benchmarks/order/ten.yaml")).sites()
    assert [site.name for site in sites] == [f"Domain{i}" for i in range(1, 11)]
    assert [site.last for site in sites] == [False] * 9 + [True]
