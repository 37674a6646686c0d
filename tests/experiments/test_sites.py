"""`relay compare-sites`: sites that look different are told apart, equal ones are not, and few images tell nothing."""

import json
import math
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from relay_core.cli import main
from relay_core.engine import RelayRun
from relay_core.engine.checkpoint import find
from relay_core.errors import DataError
from relay_core.experiments import compare_sites, sites, sites_text
from relay_core.experiments.sites import compared
from tests.conftest import Toy

CPU = torch.device("cpu")


def statistic(found, name, of_class=None):
    (one,) = [one for one in found["statistics"] if (one["name"], one["class"]) == (name, of_class)]
    return one


def apart(found, name, first, second):
    """The Kolmogorov-Smirnov statistic of two groups."""
    labels = [f"{group['site']} {group['kind']}" for group in found["groups"]]
    wanted = [labels.index(first), labels.index(second)]
    (pair,) = [pair for pair in statistic(found, name)["pairs"] if pair["groups"] == sorted(wanted)]
    return pair["ks"]


@pytest.fixture
def lookalikes(toy, tmp_path):
    """Domain2 is Domain1 again, Domain3 is the same but brighter."""
    data = tmp_path / "data"
    for site in (1, 2, 3):
        shutil.copytree(toy.data / "Domain1", data / f"Domain{site}")
    for path in (data / "Domain3/train/ROIs/image").iterdir():
        Image.fromarray(np.clip(np.asarray(Image.open(path)).astype(int) + 60, 0, 255).astype(np.uint8)).save(path)
    return Toy(data, tmp_path)


@pytest.fixture
def first(exported):
    """A checkpoint of Domain1, whose generators draw it."""
    return find(exported.toy.folder / "out/task_1", print)


def test_a_brighter_site_is_told_apart_and_an_equal_one_is_not(lookalikes, first):
    found = json.loads(json.dumps(compare_sites(first, lookalikes.run(sites=3), lookalikes.data, 300, CPU)))
    assert [(group["site"], group["kind"], group["images"]) for group in found["groups"]] == [
        ("Domain1", "replay", 300), ("Domain1", "images", 8), ("Domain2", "images", 8), ("Domain3", "images", 8),
    ]  # fmt: skip
    for one in found["statistics"]:
        equal = next(pair for pair in one["pairs"] if pair["groups"] == [1, 2])
        assert (equal["ks"], equal["p"]) == (0, 1), one["name"]
        for group in one["groups"]:
            assert sum(group["shares"]) == pytest.approx(1, abs=1e-4)
            assert len(group["shares"]) == len(one["edges"]) - 1
    assert apart(found, "brightness", "Domain1 images", "Domain3 images") == 1
    assert apart(found, "brightness", "Domain2 images", "Domain3 images") == 1
    medians = [group["median"] for group in statistic(found, "brightness")["groups"]]
    assert medians[3] == pytest.approx(medians[1] + 60 / 255, abs=0.03)
    for of_class in ("optic disc", "optic cup"):
        pairs = statistic(found, "area", of_class)["pairs"]
        assert [pair["ks"] for pair in pairs if 0 not in pair["groups"]] == [0, 0, 0], "the masks are the same"
    unlike = [group["median"] for group in statistic(found, "unlike")["groups"]]
    assert unlike[1] == unlike[2] < 1 < unlike[3], "Domain1 was trained on"
    assert {"red", "green", "blue", "contrast", "sharpness", "network_distance"} <= {s["name"] for s in found["statistics"]}
    text = sites_text(found)
    assert "Domain1, images (8) and Domain3, images (8)" in text
    assert "area of optic disc" in text
    heads = {line.count("|") for line in text.splitlines() if line.startswith(("| statistic", "| brightness"))}
    assert heads == {6, 8}, "four groups; six pairs, each with images that are here"


def test_an_image_of_the_replay_is_not_its_own_neighbour(monkeypatch):
    monkeypatch.setattr(sites, "NEIGHBOURS", 1)
    replay, other, here = (torch.tensor(values)[:, None] for values in ([0.0, 1, 3], [30.0, 34], [3.0, 10]))
    found = sites._distances([replay, other, here], 2)
    assert [group.tolist() for group in found] == [[1, 1, 2], [4, 4], [0, 7]]
    assert sites._distances([here], 0) == []


def test_a_single_image_tells_nothing_of_itself(lookalikes, first):
    folder = lookalikes.data / "Domain2/train/ROIs"
    for path in [*sorted((folder / "image").iterdir())[1:], *sorted((folder / "mask").iterdir())[1:]]:
        path.unlink()
    found = compare_sites(first, lookalikes.run(), lookalikes.data, 10, CPU)
    assert found["groups"][2] == {"site": "Domain2", "kind": "images", "images": 1}
    for one in found["statistics"]:
        assert one["groups"][2] == {"images": 1, "withheld": 5}
        assert [pair["groups"] for pair in one["pairs"]] == [[0, 1]]


def test_without_generators_what_is_here_is_compared_and_one_site_is_not_enough(toy, tmp_path):
    run = toy.run(strategy={"name": "baseline", "kwargs": {"mode": "sequential"}})
    RelayRun(run, toy.folder / "out", toy.data, CPU)()
    last = find(toy.folder / "out/task_2", print)
    found = compare_sites(last, run, toy.data, 300, CPU)
    assert [(group["site"], group["kind"]) for group in found["groups"]] == [("Domain1", "images"), ("Domain2", "images")]
    assert "network_distance" not in {one["name"] for one in found["statistics"]}
    shutil.copytree(toy.data / "Domain2", tmp_path / "alone/Domain2")
    with pytest.raises(DataError, match=r"nothing to compare: .*strategy baseline.*Domain2 is the only site"):
        compare_sites(last, run, tmp_path / "alone", 300, CPU)
    with pytest.raises(DataError, match="give --data-root"):
        compare_sites(last, run, tmp_path / "nothing", 300, CPU)


def test_bins_hold_every_value_and_few_values_are_withheld():
    random = np.random.default_rng(0)
    near, far = random.normal(0, 1, 400), np.append(random.normal(9, 1, 400), 1e6)
    found = compared([near, far, far[:4]])
    assert found["edges"][-1] < 20, "one outlier does not squeeze the others into one bin"
    assert [sum(group["shares"]) for group in found["groups"][:2]] == pytest.approx([1, 1], abs=1e-4)
    assert found["groups"][2] == {"images": 4, "withheld": 5}
    (pair,) = found["pairs"]
    assert (pair["ks"] > 0.99, pair["p"] < 1e-9) == (True, True)
    assert compared([near, near])["pairs"] == [{"groups": [0, 1], "ks": 0, "p": 1}]
    few = compared([near[:5], near[:5] + 9])["pairs"][0]["p"]
    assert few == pytest.approx(2 / math.comb(10, 5), rel=1e-5), "exact: two of all ways to deal ten images to two sites"
    assert compared([np.array([0.0, 1, 1, 1, 3]), np.ones(5)])["edges"] == [-0.5, 0.5, 1.5, 2.5, 3.5]
    assert len(compared([np.full(5, 0.3), np.full(5, 0.3)])["edges"]) == 21
    assert compared([np.empty(0), np.ones(4)]) == {
        "edges": [], "groups": [{"images": 0, "withheld": 5}, {"images": 4, "withheld": 5}], "pairs": [],
    }  # fmt: skip


def test_the_command(exported, tmp_path, monkeypatch, capsys):
    out, toy = tmp_path / "statistics.json", exported.toy
    command = ["relay", "compare-sites", str(exported.checkpoint), "--run", str(toy.folder / "run.yaml"), "--data-root"]
    command += [str(toy.data), "--count", "6", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(out)])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("| statistic | Domain1, replay (6) | Domain1, images (6) |")
    assert text.endswith(f"wrote {out}\n")
    monkeypatch.setattr(sys, "argv", [*command, "--json"])
    with pytest.raises(SystemExit):
        main()
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text())
