"""A checkpoint of the published code becomes one of ours: same numbers out, and the next site starts from it."""

import json

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from relay_core.cli.convert import register
from relay_core.config import load_run
from relay_core.conversion.published import convert
from relay_core.data import load_site
from relay_core.engine import SiteTraining, checkpoint, load_solver, train_site
from relay_core.engine.layout import hand_over_layout
from relay_core.errors import CheckpointError
from relay_core.strategies import make_strategy
from tests.conversion.kit import CPU, TOLERANCE, VALUES, lightning, run, saved, state_dict, values
from tests.reference import needs_reference

pytestmark = needs_reference


def test_a_run_whose_label_generator_draws_classes_does_not_go_on_from_it(tmp_path):
    source = saved(tmp_path / "last.ckpt", lightning(state_dict()))
    with pytest.raises(CheckpointError, match=r"set model\.kwargs\.label_head: value"):
        convert(source, load_run("fundus-cpu"), 2, tmp_path / "out", print)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """What the command made of a whole checkpoint, and the folder of trainings."""
    folder = tmp_path_factory.mktemp("converted")
    source = saved(folder / "last.ckpt", lightning(state_dict()))
    path = folder / "run.yaml"
    path.write_text("extends: fundus-cpu\ncommon: {model: {kwargs: {label_head: value}}}\n")
    app = Typer()
    app.callback()(lambda: None)
    register(app)
    done = CliRunner().invoke(
        app,
        ["convert-checkpoint", str(source), "--run", str(path), "--site", "2", "--out", str(folder / "out"), "--json"],
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert told["site"] == "Domain2"
    assert told["sites"] == ["Domain1", "Domain2"]
    assert told["warnings"] == []
    return checkpoint.read(folder / "out/task_2" / told["path"].rpartition("/")[2])


@torch.no_grad()
def test_the_solver_gives_the_published_logits(converted):
    solver, settings = load_solver(converted, CPU)
    torch.testing.assert_close(solver(values("solver")["x"]), values("solver")["logits"], **TOLERANCE)
    assert settings.name == "Domain2"


@torch.no_grad()
@pytest.mark.parametrize("suffix", ["", "_ema"])
def test_the_generators_give_the_published_images(converted, suffix):
    strategy = make_strategy(load_run("fundus-cpu", VALUES).site(2), CPU)
    names = [f"G_label{suffix}", f"G_img{suffix}"]
    checkpoint.load_networks(strategy, converted, names)
    label, image = (strategy.networks[name].eval() for name in names)
    v = values("G_label_cur")
    torch.testing.assert_close(label(v["z"], v["c"], noise="const"), v["out"], **TOLERANCE)
    torch.testing.assert_close(label.styles(v["z"], v["c"], truncation=0.5), v["ws_psi05"], **TOLERANCE)
    v = values("G_img_cur")
    torch.testing.assert_close(image(v["z"], v["c"], v["spade"], noise="const"), v["out"], **TOLERANCE)


def test_it_says_what_a_site_of_ours_would_say(converted):
    meta = converted.meta
    settings = load_run("fundus-cpu", VALUES).site(2)
    assert meta["run"] == load_run("fundus-cpu", VALUES).digest
    assert meta["settings"] == settings.shared()
    assert (meta["site"], meta["task_id"], meta["strategy"], meta["images"]) == ("Domain2", 2, "relay", 240)
    assert meta["step"] == meta["steps"] == 600  # the run file's budget; the file itself counted 74
    assert meta["converted"] == "2.1.0"
    assert meta["state"] == {
        "previous": {"Domain1": {"id": 0, "frequency": 360}},
        "current": {"Domain2": {"id": 1, "frequency": 240}},
        "stage": 2,
        "label": {"ada": {"p": 0.125, "sign_sum": 0.0, "count": 0}, "path_mean": 0.5},
        "img": {"ada": {"p": 0.25, "sign_sum": 0.0, "count": 0}, "path_mean": 1.5},
        "frozen": [],
    }
    found = {name: tuple(tensor.shape) for name, tensor in converted.tensors.items()}
    layout = {name: shape for name, (_, shape) in hand_over_layout(settings).items()}
    assert found == {name: shape for name, shape in layout.items() if "/styles/" not in name}, "it kept no colours"


def test_the_next_site_trains_from_it(converted, phantom_data):
    out, settings = converted.path.parents[1], run().site(3)
    images = load_site(
        "fundus", settings.data, folder=phantom_data / "Domain3", split="train", resolution=settings.resolution
    )
    base = checkpoint.find(out / "task_2/last.ckpt", print)  # as a run file of the published code names it
    last = train_site(SiteTraining(settings, images, out / "task_3", CPU, run().digest), base, resume=False)
    assert last.meta["step"] == 2
    assert last.meta["sites"] == ["Domain1", "Domain2", "Domain3"]
    assert last.meta["state"]["previous"] == {
        "Domain1": {"id": 0, "frequency": 360},
        "Domain2": {"id": 1, "frequency": 240},
    }
    assert last.meta["state"]["current"] == {"Domain3": {"id": 2, "frequency": 8}}
    assert last.meta["state"]["img"]["ada"]["p"] == 0.125  # halved, as at every site's start
    assert converted.meta["state"].keys() == last.meta["state"].keys()
    assert converted.meta["state"]["img"].keys() == last.meta["state"]["img"].keys()
    for name in ("solver", "G_img", "G_label"):  # the memory is what came
        frozen = last.network(f"old_{name}")
        assert all(torch.equal(value, frozen[key]) for key, value in converted.network(name).items())
