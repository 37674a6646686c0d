"""What is made of the contents of a file, and what is refused: as the reading process hands them over, without it."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch

from relay_core.bundle import importer, writer
from relay_core.bundle.provenance import KnownRelays
from relay_core.conversion import published as conversion
from relay_core.conversion.isolated import Contents
from relay_core.conversion.pickled import LEFT_OUT
from relay_core.conversion.published import convert
from relay_core.engine import checkpoint, load_solver
from relay_core.engine.layout import hand_over_layout
from relay_core.errors import CheckpointError, RunFileError
from relay_core.strategies import make_strategy
from tests.bundle.kit import acquaint, make_site
from tests.conversion.kit import BANKS, CPU, TOLERANCE, run, state_dict, values
from tests.reference import needs_reference

pytestmark = needs_reference
BASELINE = ["strategy.name=baseline", "model={name: U-Net, kwargs: {backbone: resnet18}}"]


@pytest.fixture
def contents(monkeypatch):
    """Of a whole relay checkpoint; change its two mappings, then `attempt`."""
    found = Contents(
        {key: value for key, value in state_dict().items() if not LEFT_OUT.search(key)},
        {"checkpoint": True, "RL_meta": json.loads(json.dumps(BANKS)), "global_step": 74},
    )
    monkeypatch.setattr(conversion, "unpickled", lambda _: found)
    return found


def attempt(tmp_path, *overrides, site=2):
    warnings = []
    return convert(tmp_path / "last.ckpt", run(*overrides), site, tmp_path / "out", warnings.append), warnings


def refused(tmp_path, *overrides, error=CheckpointError, site=2):
    with pytest.raises(error) as caught:
        attempt(tmp_path, *overrides, site=site)
    assert not list(tmp_path.rglob("*.safetensors"))
    return str(caught.value)


def test_networks_of_other_sizes_are_named_and_counted(contents, tmp_path):
    said = refused(tmp_path, "model.kwargs.w_img_dim=32")
    assert "does not fit the networks of the run file" in said
    assert "G_img: mapping.w_avg is [64], the run file's network has [32]" in said
    assert "; and " in said
    said = refused(tmp_path, "model.kwargs.img_resolution=16")
    assert "G_label: blocks.3.conv0.weight is not known" in said
    assert "G_img_ema" not in said


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("model.G_img.synthesis.b8.spade.mlp_beta.weight", "G_img: blocks.1.spade.modulation.weight is missing"),
        ("model.D_label.b4.fc.bias", "D_label: fc.bias is missing"),
        ("model.solver.outc.conv.bias", "solver: head.bias is missing"),
        ("model.pl_mean_img", "model.pl_mean_img is missing"),
        ("model.augment_pipe_label.p", "model.augment_pipe_label.p is missing"),
    ],
)
def test_a_missing_key_is_named(contents, tmp_path, key, ours):
    del contents.tensors[key]
    assert ours in refused(tmp_path)


def test_numbers_that_are_not_finite_are_refused(contents, tmp_path):
    contents.tensors["model.solver.outc.conv.bias"] = torch.tensor([0.0, math.nan, 0.0])
    assert "solver: head.bias holds numbers that are not finite" in refused(tmp_path)


@pytest.mark.parametrize(
    ("key", "bank"),
    [
        ("cs_current_task", {}),
        ("cs_current_task", {"Domain2": {"id": 0, "frequency": 9}}),
        ("cs_current_task", {"Domain2": {"id": 32, "frequency": 9}}),
        ("cs_current_task", {"Domain2": {"id": 1}}),
        ("cs_current_task", {"Domain2": {"id": -1, "frequency": 9}}),
        ("cs_previous_task", {"Dom\nain": {"id": 0, "frequency": 9}}),
        ("cs_previous_task", [1]),
    ],
)
def test_a_bank_that_is_not_sound_is_refused(contents, tmp_path, key, bank):
    contents.rest["RL_meta"][key] = bank
    assert "its site bank" in refused(tmp_path)


def test_another_site_is_a_warning_an_existing_training_is_kept_and_doubles_become_floats(contents, tmp_path):
    name = "model.solver.outc.conv.bias"
    contents.tensors[name] = contents.tensors[name].double()
    made, warnings = attempt(tmp_path, site=3)
    assert made.meta["site"] == "Domain3"
    assert made.network("solver")["head.bias"].dtype == torch.float32
    assert warnings == [f"{tmp_path / 'last.ckpt'} was trained last at Domain2; it is taken as that of Domain3"]
    before = made.path.read_bytes()
    with pytest.raises(CheckpointError, match="already holds a training of Domain3"):
        attempt(tmp_path, site=3)
    assert made.path.read_bytes() == before


def test_a_signed_relay_begins_with_a_converted_first_site(contents, tmp_path):
    """A later one cannot: the hops before have no signatures, and a bundle's bank holds the sites of its hops."""
    contents.rest["RL_meta"] = {"cs_previous_task": {}, "cs_current_task": {"Domain1": {"id": 0, "frequency": 360}}}
    made, warnings = attempt(tmp_path, site=1)
    assert warnings == []
    north, south = make_site(tmp_path / "north", "north"), make_site(tmp_path / "south", "south")
    acquaint(north, south)
    writer.export_bundle(made.path, run(), north, tmp_path / "one.relay")
    known = KnownRelays({run().digest: (run(), 2)}, [])
    _, target = importer.import_bundle(tmp_path / "one.relay", known, south, tmp_path / "in", hand_over_layout)
    assert checkpoint.read(target).meta["state"] == made.meta["state"]


def test_strategies_do_not_mix(contents, tmp_path):
    assert "holds a relay's generators, and the run file's strategy is baseline" in refused(tmp_path, *BASELINE)
    for key in [key for key in contents.tensors if not key.startswith("model.solver.")]:
        del contents.tensors[key]
    assert "a solver alone" in refused(tmp_path)
    assert "no site 9" in refused(tmp_path, error=RunFileError, site=9)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["model.solver.", "model."])
def test_a_solver_alone(contents, tmp_path, prefix, monkeypatch):
    solver = {prefix + k.removeprefix("model.solver."): v for k, v in contents.tensors.items() if "model.solver." in k}
    alone = replace(contents, tensors={**solver, "criterion.wce.weight": torch.ones(3)}, rest={"checkpoint": True})
    monkeypatch.setattr(conversion, "unpickled", lambda _: alone)
    made, warnings = attempt(tmp_path, *BASELINE)
    assert made.networks == ["solver"]
    assert (made.meta["strategy"], made.meta["state"]) == ("baseline", {})
    assert "does not say where it was trained" in warnings[0]
    network, _ = load_solver(checkpoint.read(made.path), CPU)
    torch.testing.assert_close(network(values("solver")["x"]), values("solver")["logits"], **TOLERANCE)


def test_a_state_dict_without_lightning_is_sent_to_pretrained(contents, tmp_path):
    contents.rest["checkpoint"] = False
    assert "--pretrained" in refused(tmp_path)


@pytest.mark.parametrize(
    ("network", "classifier"),
    [
        ("{name: U-Net, kwargs: {backbone: resnet18}}", "encoder.fc"),
        ("{name: resnet18, kwargs: {}}", "fc"),
        ("{name: resnet20, kwargs: {}}", "linear"),
    ],
)
def test_a_classifier_alone(contents, tmp_path, monkeypatch, network, classifier):
    """By the names that such networks usually have: none of the published code's was at hand."""
    slices = "dataset={name: midline, kwargs: {task: classification, img_channels: 3, num_classes: 3}}"
    overrides = [slices, "strategy.name=baseline", f"model={network}", "train.loss={name: cross_entropy}"]
    like = make_strategy(run(*overrides).site(2), CPU).solver.state_dict()
    theirs = {}
    for key, value in like.items():
        inside = key.replace("encoder.", "" if classifier != "encoder.fc" else "encoder.").replace("head", classifier)
        theirs["model." + re.sub(r"stages\.(\d)", lambda m: f"layer{int(m[1]) + 1}", inside)] = value
    monkeypatch.setattr(conversion, "unpickled", lambda _: replace(contents, tensors=theirs))
    made, _ = attempt(tmp_path, *overrides)
    assert all(torch.equal(value, like[key]) for key, value in made.network("solver").items())
