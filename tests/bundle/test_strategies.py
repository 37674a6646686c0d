"""What each strategy hands over travels in a bundle, and the next site goes on from it; real images never travel."""

import json

import pytest
import torch

from relay_core.bundle import importer, manifest, writer
from relay_core.bundle.provenance import KnownRelays
from relay_core.config import load_run
from relay_core.engine import RelayRun, checkpoint
from relay_core.engine.checkpoint import newest
from relay_core.engine.layout import hand_over_layout
from relay_core.errors import BundleError
from tests.bundle.kit import members, packed, resigned

CPU = torch.device("cpu")


def trained(toy, common, site=1):
    path = toy.write(train={"num_mimgs": 16e-6}, **common)
    run = load_run(str(path))
    RelayRun(run, toy.folder / "out", toy.data, CPU, only=site)()
    return run, newest(toy.folder / "out" / f"task_{site}", print)


CASES = {
    "si": ({"strategy": {"name": "si"}}, {"solver", "importance"}),
    "ewc": ({"strategy": {"name": "ewc", "kwargs": {"images": 4}}}, {"solver", "importance"}),
    "owm": ({"strategy": {"name": "owm", "kwargs": {"largest": 40}}}, {"solver", "projectors"}),
    "lwf": ({"strategy": {"name": "lwf"}}, {"solver"}),
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
    for state in ({"sites": 3}, {}):

        def lie(made, state=state):
            made["checkpoint"]["state"] = state
            return made

        path.write_bytes(packed(resigned(honest, world.north, manifest=lie)))
        with pytest.raises(BundleError, match="strategy or site bank"):
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
