"""Bundles of every version that was released are read by every later one."""

import json
from pathlib import Path

import pytest
import torch

from relay_core.bundle import signed_report
from relay_core.bundle.importer import import_bundle
from relay_core.bundle.keys import KeyFolder
from relay_core.bundle.provenance import KnownRelays
from relay_core.config import load_run
from relay_core.engine import checkpoint
from relay_core.engine.evaluate import load_solver
from relay_core.engine.layout import hand_over_layout

ROOMS = sorted((Path(__file__).parent / "museum").iterdir())
BUNDLES = [path for room in ROOMS for path in sorted(room.glob("*.relay"))]
SITES = {"plain": 2, "half": 2, "sealed": 2, "second": 3}


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_is_verified_and_imported(path, tmp_path):
    run, site = load_run(path.parent / "run.yaml"), SITES[path.stem]
    keys = KeyFolder(path.parent / {2: "south", 3: "west"}[site])
    facts, target = import_bundle(path, KnownRelays({run.digest: (run, site)}, []), keys, tmp_path, hand_over_layout)
    assert facts.version == path.parent.name
    assert facts.hop == site - 1
    assert [hop["site"] for hop in facts.history] == ["Domain1", "Domain2"][: site - 1]
    assert facts.metrics["Domain1"]["dice_per_sample"] is not None
    assert (facts.recipient is not None) == (path.stem == "sealed")
    solver, _ = load_solver(checkpoint.read(target), torch.device("cpu"))
    assert solver(torch.zeros(1, 3, 16, 16)).isfinite().all()


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_its_report_is_read(room):
    found = signed_report.read_report(room / "report.json", KeyFolder(room / "south"))
    assert found.by == "north"
    assert found.run == load_run(room / "run.yaml").digest


def test_plain_and_half_are_the_same_model(tmp_path):
    for room in ROOMS:
        run, got = load_run(room / "run.yaml"), {}
        for name in ("plain", "half", "sealed"):
            known = KnownRelays({run.digest: (run, 2)}, [])
            _, target = import_bundle(
                room / f"{name}.relay", known, KeyFolder(room / "south"), tmp_path / name, hand_over_layout
            )
            got[name] = checkpoint.read(target).tensors
        for name, value in got["plain"].items():
            wanted = value.half().float() if value.is_floating_point() else value
            assert torch.equal(got["half"][name], wanted)
            assert torch.equal(got["sealed"][name], wanted)


def test_this_version_has_a_room():
    import relay_core

    assert relay_core.__version__ in [room.name for room in ROOMS], "python -m tests.bundle.make_museum tests/bundle/museum"
    for room in ROOMS:
        assert {path.stem for path in room.glob("*.relay")} == SITES.keys()
        assert json.loads((room / "card.json").read_text())["name"] == "north"
