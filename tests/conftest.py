"""A relay small enough for a test: three phantom sites of 32 pixels, networks of a few channels."""

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from relay_core.config import RunFile, load_run
from relay_core.data import make_phantoms

MODEL = {
    "img_resolution": 16, "z_img_dim": 8, "z_label_dim": 8, "c_img_dim": 4, "c_label_dim": 4, "w_img_dim": 8,
    "w_label_dim": 8,
    "G_img_kwargs": {"mapping_kwargs": {"num_layers": 2}, "synthesis_kwargs": {"channel_base": 128, "channel_max": 8}},
    "G_label_kwargs": {"mapping_kwargs": {"num_layers": 2}, "synthesis_kwargs": {"channel_base": 128, "channel_max": 8}},
    "D_img_kwargs": {"channel_base": 128, "channel_max": 8}, "D_label_kwargs": {"channel_base": 128, "channel_max": 8},
    "solver_kwargs": {"backbone": "plain", "base_channels": 4}, "gan_every": 1,
}  # fmt: skip


@dataclass
class Toy:
    """Data of three sites, and run files for them."""

    data: Path
    folder: Path

    def write(self, name: str = "run.yaml", sites: int = 2, **common: object) -> Path:
        """Write a run file of six steps a site; `common` is laid over the defaults."""
        from relay_core.config.runfile import merge

        defaults = {
            "dataset": {"name": "fundus", "kwargs": {}},
            "strategy": {"name": "relay"},
            "model": {"name": "doublegan", "kwargs": MODEL},
            "train": {"num_mimgs": 48e-6, "batch_size": 8, "log_every_n_steps": 1, "loss": {"name": "explog"}},
        }
        ids = list(range(1, sites + 1))
        entries = [{"kwargs": {"task_id": i, "task_name": f"Domain{i}", "img_folder": f"Domain{i}"}} for i in ids]
        raw = {
            "common": merge(defaults, common),
            "all_tasks_datasets": entries,
            "current_tasks": {"task_ids": ids},
        }
        path = self.folder / name
        path.write_text(yaml.safe_dump(raw))
        return path

    def run(self, sites: int = 2, **common: object) -> RunFile:
        """The same, loaded."""
        return load_run(str(self.write(sites=sites, **common)))


@pytest.hookimpl(optionalhook=True)  # a machine with a GPU may lack xdist
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: many tests wait, for leases, clocks and processes."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Toy networks are faster so, and tests that run beside each other do not wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def phantom_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    make_phantoms(folder, 3, train=8, test=5, size=32)
    return folder


@pytest.fixture
def toy(phantom_data: Path, tmp_path: Path) -> Toy:
    return Toy(phantom_data, tmp_path)


@dataclass(frozen=True)
class Exported:
    """A trained toy, and its solver as ONNX."""

    toy: Toy
    content: bytes
    proof: dict[str, Any]
    facts: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        """Of the second site."""
        return self.toy.folder / "out/task_2"

    def image(self, site: int = 1) -> bytes:
        """A test image of a site, as PNG."""
        return sorted((self.toy.data / f"Domain{site}/test/ROIs/image").iterdir())[0].read_bytes()


@pytest.fixture(scope="session")
def exported(phantom_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    from relay_core.engine import RelayRun
    from relay_core.engine.checkpoint import find
    from relay_core.export.checkpoint import export_checkpoint

    toy = Toy(phantom_data, tmp_path_factory.mktemp("exported"))
    run = toy.run()
    RelayRun(run, toy.folder / "out", toy.data, torch.device("cpu"))()
    path = toy.folder / "model.onnx"
    proof, facts = export_checkpoint(find(toy.folder / "out/task_2", print), run, toy.data, path, "fp32")
    return Exported(toy, path.read_bytes(), proof, json.loads(json.dumps(facts)))


def _slices(folder: Path, site: int) -> None:
    """A site of `mediastinum-tumor`: five studies of four slices, two of them with a bright tumour."""
    random = np.random.default_rng(site)
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(20):
        values = random.normal(160 + 20 * site, 20, (24, 20))
        if i % 2:
            values[6:18, 5:15] += 120
        Image.fromarray(values.clip(0, 400).astype(np.uint16)).save(folder / f"images/{i:02}.png")
        rows.append([f"{i:02}", f"study-{site}{i // 4}", f"images/{i:02}.png", "", str(i % 2)])
    with (folder / "meta.txt").open("w", newline="") as file:
        csv.writer(file).writerows([["instance_id", "study_id", "img_file", "label_file", "positive"], *rows])


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A trained toy that says whether a slice shows a tumour, and its solver as ONNX."""
    from relay_core.engine import RelayRun
    from relay_core.engine.checkpoint import find
    from relay_core.export.checkpoint import export_checkpoint

    folder = tmp_path_factory.mktemp("classifier")
    for site in (1, 2):
        _slices(folder / "data" / f"Domain{site}", site)
    toy = Toy(folder / "data", folder)
    kwargs = {"task": "classification", "class_by": "positive", "num_classes": 2, "img_channels": 1, "test_share": 0.4}
    solver = {"in_channels": 1, "num_classes": 2}
    run = toy.run(
        dataset={"name": "mediastinum-tumor", "kwargs": kwargs},
        strategy={"name": "baseline", "kwargs": {"mode": "sequential"}},
        model={"kwargs": {"task": "classification", "img_channels": 1, "label_num_classes": 2, "solver_kwargs": solver}},
        train={"num_mimgs": 200e-6, "loss": {"name": "cross_entropy"}},
    )
    RelayRun(run, folder / "out", toy.data, torch.device("cpu"))()
    path = folder / "model.onnx"
    proof, facts = export_checkpoint(find(folder / "out/task_2", print), run, toy.data, path, "fp32")
    return Exported(toy, path.read_bytes(), proof, json.loads(json.dumps(facts)))
