"""What each strategy hands over travels in a bundle, and the next site goes on from it; real images never travel."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from pydantic import BaseModel, ConfigDict

from relay_core.bundle import importer, manifest, writer
from relay_core.bundle.provenance import KnownRelays
from relay_core.config import STRATEGIES, HandedOverState, LwfKwargs, StrategyFacts, load_run
from relay_core.engine import RelayRun, checkpoint
from relay_core.engine.checkpoint import newest
from relay_core.engine.layout import hand_over_layout
from relay_core.errors import BundleError, ExportError, RunFileError
from relay_core.export import export_checkpoint
from relay_core.strategies import make_strategy
from tests.bundle.kit import members, packed, resigned

CPU = torch.device("cpu")


def trained(toy, common, site=1, out="out"):
    path = toy.write(train={"num_mimgs": 16e-6}, **common)
    run = load_run(str(path))
    RelayRun(run, toy.folder / out, toy.data, CPU, only=site)()
    return run, newest(toy.folder / out / f"task_{site}", print)


CASES = {
    "si": ({"strategy": {"name": "si"}}, {"solver", "importance"}),
    "ewc": ({"strategy": {"name": "ewc", "kwargs": {"images": 4}}}, {"solver", "importance"}),
    "owm": ({"strategy": {"name": "owm", "kwargs": {"largest": 40}}}, {"solver", "projectors"}),
    "lwf": ({"strategy": {"name": "lwf"}}, {"solver"}),
    "style": ({"strategy": {"name": "style"}}, {"solver", "styles"}),
    "sixty-four": ({"strategy": {"name": "lwf"}, "train": {"precision": 64}}, {"solver"}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_strategy_knows_travels(toy, world, case):
    common, networks = CASES[case]
    train = {"num_mimgs": 16e-6, **common.get("train", {})}
    run = load_run(str(toy.write(**{**common, "train": train})))
    RelayRun(run, toy.folder / "out", toy.data, CPU, only=1)()
    last = newest(toy.folder / "out/task_1", print)
    writer.export_bundle(last.path, run, world.north, toy.folder / "one.relay")
    known = KnownRelays({run.digest: (run, 2)}, [])
    _, target = importer.import_bundle(toy.folder / "one.relay", known, world.south, toy.folder / "south", hand_over_layout)
    found = checkpoint.read(target)
    assert set(found.networks) == networks
    for name in networks:
        for key, value in found.network(name).items():
            torch.testing.assert_close(value, last.network(name)[key].to(value.dtype), rtol=0, atol=1e-7)
    assert found.meta["state"] == {"sites": 1}
    RelayRun(run, toy.folder / "south", toy.data, CPU, only=2)()
    assert newest(toy.folder / "south/task_2", print).meta["state"] == {"sites": 2}


def test_a_count_of_sites_that_the_history_does_not_have_is_refused(toy, world):
    run, last = trained(toy, {"strategy": {"name": "lwf"}})
    path = toy.folder / "one.relay"
    writer.export_bundle(last.path, run, world.north, path)

    honest = members(path)
    for state, words in (({"sites": 3}, "strategy or site bank"), ({}, "is not sound: 'sites'")):

        def lie(made, state=state):
            made["checkpoint"]["state"] = state
            return made

        path.write_bytes(packed(resigned(honest, world.north, manifest=lie)))
        with pytest.raises(BundleError, match=words):
            importer.import_bundle(
                path, KnownRelays({run.digest: (run, 2)}, []), world.south, toy.folder / "south", hand_over_layout
            )


def test_importances_are_carried_exactly_in_a_bundle_of_half_precision(toy, world):
    run, last = trained(toy, {"strategy": {"name": "ewc", "kwargs": {"images": 4}}})
    writer.export_bundle(last.path, run, world.north, toy.folder / "one.relay", half=True)
    known = KnownRelays({run.digest: (run, 2)}, [])
    _, target = importer.import_bundle(toy.folder / "one.relay", known, world.south, toy.folder / "south", hand_over_layout)
    found = checkpoint.read(target).network("importance")
    assert all(torch.equal(value, found[key]) for key, value in last.network("importance").items())


def test_real_images_never_travel(toy, world):
    run, last = trained(toy, {"strategy": {"name": "rehearsal", "kwargs": {"images": 4}}})
    assert "memory" in last.networks
    with pytest.raises(BundleError, match="real images of patients") as error:
        writer.export_bundle(last.path, run, world.north, toy.folder / "one.relay")
    made = {"task_id": 1, "checkpoint": {"strategy": "rehearsal", "state": {"sites": 1}}}
    with pytest.raises(BundleError, match="strategy or site bank"):
        manifest.require_fit(made, [{"task_id": 1, "site": "Domain1"}], run)
    assert error.value.code == "weights_invalid"
    assert not (toy.folder / "one.relay").exists()
    assert json.loads((toy.folder / "out/task_1/scores.json").read_text())["checkpoint"] == last.digest


PLUGIN = '''
from dataclasses import replace
from relay_core.config import Entry
from relay_core.config import RehearsalKwargs

class HonestKwargs(RehearsalKwargs):
    """States what rehearsal states."""
    facts = RehearsalKwargs.facts

class DenyingKwargs(RehearsalKwargs):
    """States that it holds no images."""
    facts = replace(RehearsalKwargs.facts, holds_real_images=False, in_service=True)

HONEST = Entry(HonestKwargs, "own_rehearsal_parts:Own")
DENYING = Entry(DenyingKwargs, "own_rehearsal_parts:Own")
'''
PARTS = '''
from relay_core.strategies.rehearsal import RehearsalStrategy

class Own(RehearsalStrategy):
    """A plug-in's, built on rehearsal; it even says that it holds none."""
    holds_real_images = False
'''


def test_a_plug_in_that_is_built_on_rehearsal_hands_nothing_on(toy, world, tmp_path, monkeypatch):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/own_rehearsal.py").write_text(PLUGIN)
    (tmp_path / "plugins/own_rehearsal_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path / "plugins"))
    monkeypatch.setenv("RELAY_PLUGINS", "own_rehearsal")
    run, last = trained(toy, {"strategy": {"name": "own_rehearsal:HONEST", "kwargs": {"images": 4}}})
    assert last.meta["holds_real_images"] is True
    with pytest.raises(BundleError, match="real images of patients"):
        writer.export_bundle(last.path, run, world.north, toy.folder / "one.relay")
    with pytest.raises(ExportError, match="keeps real images"):
        export_checkpoint(last, run, toy.data, toy.folder / "model.onnx", "fp32")
    with pytest.raises(RunFileError, match="built on one that keeps real images"):
        trained(toy, {"strategy": {"name": "own_rehearsal:DENYING", "kwargs": {"images": 4}}}, out="denying")
    monkeypatch.setattr(sys.modules["own_rehearsal"].HonestKwargs, "facts", sys.modules["own_rehearsal"].DenyingKwargs.facts)
    with pytest.raises(BundleError, match="real images of patients"):  # the checkpoint itself says so
        writer.export_bundle(last.path, run, world.north, toy.folder / "one.relay")
    with pytest.raises(ExportError, match="keeps real images"):
        export_checkpoint(last, run, toy.data, toy.folder / "model.onnx", "fp32")
    assert not (toy.folder / "one.relay").exists()


@pytest.mark.parametrize("name", STRATEGIES.builtin)
def test_a_strategy_hands_over_what_its_schema_says(toy, name):
    """The state that training leaves is one that the next site takes; anything more, or another type, is refused."""
    settings = toy.run(strategy={"name": name}).site(1)
    strategy = make_strategy(settings, CPU)
    strategy.begin_site("Domain1", 8)
    state = json.loads(json.dumps({**strategy.state(), **({"frozen": []} if "frozen" in strategy.state() else {})}))
    manifest.require_handed_over(state, settings.facts)
    wrong = [{**state, "images": [0.5]}, [state], None, {**state, "sites": True}]
    wrong += [{key: value for key, value in state.items() if key != left_out} for left_out in state if left_out != "label"]
    for other in wrong:
        with pytest.raises(BundleError, match="not sound"):
            manifest.require_handed_over(other, settings.facts)


def test_images_that_came_along_are_never_forgotten(toy):
    """A site goes on from a checkpoint that holds images, with settings that state that there are none."""
    run, last = trained(toy, {"strategy": {"name": "lwf"}})
    meta = {**last.meta, "holds_real_images": True}
    checkpoint.write(toy.folder / "out/task_1", last.meta["step"], meta, last.tensors)
    RelayRun(run, toy.folder / "out", toy.data, CPU, only=2)()
    assert newest(toy.folder / "out/task_2", print).meta["holds_real_images"] is True


class Loose(BaseModel):
    """No schema of ours."""


class Open(HandedOverState):
    """Lets anything through."""

    model_config = ConfigDict(extra="allow")


@pytest.mark.parametrize("wrong", [{"sequence": "at-once"}, {"holds_real_images": "no"}, {"handed_over": Loose},
                                   {"handed_over": Open}])  # fmt: skip
def test_facts_that_say_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=r"facts of a strategy|strict model_config"):
        replace(LwfKwargs.facts, **wrong)


@pytest.mark.filterwarnings("ignore:Field name")
def test_facts_are_no_setting():
    with pytest.raises(TypeError, match="without an annotation"):

        class Annotated(LwfKwargs):
            facts: StrategyFacts = LwfKwargs.facts
