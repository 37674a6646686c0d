"""What other packages add: docs/extend.md as it stands, plain names by entry points, and what is refused."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from relay_core.cli.catalogue import catalogue
from relay_core.config import load_run
from relay_core.config.datasets import DATASETS
from relay_core.config.strategies import STRATEGIES
from relay_core.engine import RelayRun
from relay_core.engine.checkpoint import newest
from relay_core.errors import DataError, RunFileError
from relay_core.experiments.comparison import overrides_of

DOCS = Path(__file__).parents[2] / "docs"


def blocks():
    """The files of docs/extend.md, by the name in their first line."""
    text = (DOCS / "extend.md").read_text()
    found = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", text, re.DOTALL)
    return dict(found)


@pytest.fixture
def extras(tmp_path, monkeypatch):
    """The package of docs/extend.md, and two hospitals' pictures."""
    for name, text in blocks().items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    rng = np.random.default_rng(0)
    for site in ("north", "south"):
        folder = tmp_path / "data" / site
        folder.mkdir(parents=True)
        lines = ["file,patient,split,label"]
        for i in range(16):
            Image.fromarray(rng.integers(0, 100, (16, 16, 3), np.uint8) + np.uint8(100 * (i % 2))).save(folder / f"{i}.png")
            lines.append(f"{i}.png,p{i // 2},{'test' if i >= 12 else 'train'},{i % 2}")
        (folder / "table.csv").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for module in [m for m in sys.modules if m.partition(".")[0] == "hospital_extras"]:
        del sys.modules[module]


def test_the_example_of_the_documentation_trains_hands_over_and_resumes(extras, monkeypatch):
    monkeypatch.setenv("RELAY_PLUGINS", "hospital_extras")
    run = load_run(str(extras / "run.yaml"))
    matrices = RelayRun(run, extras / "out", extras / "data", torch.device("cpu"))()
    assert matrices["accuracy"].rows == ["north", "south"]
    last = newest(extras / "out/task_2", print)
    assert last.meta["strategy"] == "hospital_extras:NEAR"
    assert last.meta["hand_over"] == ["solver"]
    assert "near" in (overrides_of("hospital_extras:NEAR")[0]).lower()
    RelayRun(run, extras / "out", extras / "data", torch.device("cpu"), resume=True)()
    assert newest(extras / "out/task_2", print).digest == last.digest
    (extras / "data/north/3.png").unlink()
    with pytest.raises(DataError, match=r"row 5: there is no file 3.png"):
        RelayRun(run, extras / "other", extras / "data", torch.device("cpu"))()
    with pytest.raises(RunFileError, match=r"unknown key 'dataset.kwargs.table_fil'; did you mean 'table_file'"):
        load_run(str(extras / "run.yaml"), ["dataset.kwargs.table_fil=x"])
    outside = load_run(str(extras / "run.yaml"), ["dataset.kwargs.table_file=../x.csv"]).outside_paths()
    assert outside == ["dataset.kwargs.table_file: ../x.csv"]


def test_only_allowed_modules_are_imported(extras, monkeypatch):
    monkeypatch.delenv("RELAY_PLUGINS", raising=False)
    with pytest.raises(RunFileError, match="not allowed here: RELAY_PLUGINS lists none"):
        load_run(str(extras / "run.yaml"))
    monkeypatch.setenv("RELAY_PLUGINS", "others, hospital_extra")
    with pytest.raises(RunFileError, match="lists others, hospital_extra"):
        load_run(str(extras / "run.yaml"))
    assert "hospital_extras" not in sys.modules
    monkeypatch.setenv("RELAY_PLUGINS", "os")
    with pytest.raises(RunFileError, match=r"'os:system' \(os:system\) is not an Entry"):
        load_run(str(extras / "run.yaml"), ["strategy={name: 'os:system'}"])


def test_settings_of_plugins_load_no_torch(extras):
    code = "import sys, hospital_extras; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=extras)


def test_installed_packages_add_plain_names(extras, monkeypatch):
    offered = {"relay_core.datasets": "hospital_extras:TABLE"}

    def entry_points(*, group, name=None):
        points = [metadata.EntryPoint("table", offered[group], group)] if group in offered else []
        return metadata.EntryPoints(p for p in points if name in (None, p.name))

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    assert list(DATASETS)[-1] == "table"
    assert "`table`" in catalogue()
    assert "`table`" not in catalogue(plugins=False)
    offered["relay_core.strategies"] = "hospital_extras:missing"
    with pytest.raises(RunFileError, match=r"strategy 'table' \(hospital_extras:missing\) cannot be loaded"):
        STRATEGIES["table"]


def test_the_catalogue_in_the_documentation_is_the_registries():
    assert (DOCS / "catalogue.md").read_text() == catalogue(plugins=False), "relay catalogue > docs/catalogue.md"


@pytest.mark.parametrize("registry", ["DATASETS", "LOSSES", "MODELS", "STRATEGIES"])
def test_everything_that_is_built_in_can_be_made(registry):
    from relay_core.config import datasets, losses, model, strategies

    found = next(getattr(m, registry) for m in (datasets, losses, model, strategies) if hasattr(m, registry))
    for name in found.builtin:
        assert callable(found.load(name)), name
        assert found[name].summary.endswith("."), name
