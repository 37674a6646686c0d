"""Run files in the words of the published code, as they stand: relay, deployment, test only, joint, local, sequential."""

import json
from pathlib import Path

import pytest
import yaml

from relay_core.cli.training import run_relay
from relay_core.config import load_run, parse_run
from relay_core.config.published import translated
from relay_core.config.reading import merge
from relay_core.errors import RunFileError
from tests.cli.test_cli import relay
from tests.conftest import MODEL

FOLDER = Path(__file__).parent / "published"
FILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def small(toy, name):
    """The file at a size that a test can train; nothing of its words is changed."""
    raw = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    common = raw["common"]
    common["dataset"]["kwargs"]["root_path"]["Linux"] = str(toy.data)
    common["dataset"]["kwargs"]["img_size"] = [16, 16]
    if common["model"]["name"] == "doublegan":
        sizes = {key: value for key, value in MODEL.items() if key != "solver_kwargs"}
        common["model"]["kwargs"] |= {**sizes, "ada_kimg": 0.01}
    train = common["train"]
    train |= {"batch_size": 8, **({"num_epochs": 2} if "num_epochs" in train else {"num_mimgs": 32e-6})}
    for entry in raw["all_tasks_datasets"]:
        entry["kwargs"]["img_folder"] = entry["kwargs"]["task_name"]
    path = toy.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_it_stands(name):
    run = load_run(FOLDER / f"{name}.yaml")
    for site in run.sites():
        site.require_consistent()
        assert site.train.gradient_clip is None
        assert site.resolution == 64
    again = load_run(FOLDER / f"{name}.yaml")
    assert again.digest == run.digest
    pinned = [note for note in run.notes if "pin_memory" in note]
    assert pinned == ["train.pin_memory is read and has no effect: images go to the device without a setting"]


def test_words_mean_what_they_meant():
    relay_file, joint, local, sequential = (
        load_run(FOLDER / f"{n}.yaml").sites()[0] for n in ("relay", "joint", "local", "sequential")
    )
    assert relay_file.train.loss.kwargs.weight == [1, 2, 2]
    assert relay_file.train.loss.kwargs.dice.model_dump() == {
        "background": False, "smooth": 1.0, "per_sample": False, "square": False, "generalised": False,
    }  # fmt: skip
    assert (relay_file.solver.kwargs.norm, relay_file.solver.kwargs.activation) == ("batch", "lrelu")
    assert (joint.mode, joint.train.loss.name, joint.solver.kwargs.backbone) == ("joint", "dice_ce", "plain")
    assert local.mode == "local"
    assert local.train.loss.kwargs.dice.per_sample, "the published default"
    assert local.train.loss.kwargs.dice.background
    assert (sequential.mode, sequential.train.optimizer.lr_scheduler.name) == ("sequential", "cosine")
    assert sequential.train.optimizer.lr_scheduler.final == pytest.approx(0.01)


WORDS = [
    (
        "dataset",
        {"name": "mediastinum-tumor", "kwargs": {"train_ratio": 0.75, "study_wise": False, "neg_pos_ratio": 2,
                                                 "add_bg_label": True, "add_bone_label": False, "num_test_samples": 3}},
        {"test_share": 0.25, "split_by": "slice", "negatives_per_positive": 2, "background_label": True,
         "bone_label": False, "test_count": 3},
    ),
    (
        "dataset",
        {"name": "midline", "kwargs": {"drop_negative": True, "pseudo_label": False, "img_size": [256, 256]}},
        {"negatives_per_positive": 0, "img_size": 256},
    ),
    (
        "strategy",
        {"name": "owm", "kwargs": {"alpha": 1.0, "a_lambda": 0.1, "owm_module_names": None}},
        {"alpha": 1.0, "decay": 0.1},
    ),
    ("model", {"name": "U-Net", "kwargs": {"norm": None, "nl": "celu"}}, {"norm": "none", "activation": "elu"}),
    (
        "model",
        {"name": "resnet18", "kwargs": {"groups": 1, "width_per_group": 64, "nl": "gelu", "norm": "gn"}},
        {"activation": "gelu", "norm": "group"},
    ),
    (
        "train",
        {"loss": {"name": "FocalTverskyLoss", "kwargs": {"tversky_kwargs": {"do_bg": True}, "gamma": 0.75}}},
        {"loss": {"name": "focal_tversky", "kwargs": {"background": True, "gamma": 0.75}}},
    ),
    (
        "train",
        {"loss": {"name": "TopKLoss", "kwargs": {"k": 10}}},
        {"loss": {"name": "dice_topk", "kwargs": {"k": 0.1}}},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("part", "theirs", "ours"), WORDS)
def test_keys_become_ours(part, theirs, ours):
    found = translated({part: theirs})[part]
    assert found.get("kwargs", found) == ours


@pytest.mark.parametrize(
    "train",
    [
        {"loss": {"name": ["x"]}}, {"loss": {"name": "ExpLogLoss", "kwargs": [1]}},
        {"loss": {"name": "ExpLogLoss", "kwargs": {"dice_kwargs": 5}}},
        {"loss": {"name": "ExpLogLoss", "kwargs": {"wce_kwargs": [1]}}},
        {"optimizer": {"kwargs": {"lr": 0}, "lr_scheduler": {"name": "CosineAnnealingLR", "kwargs": {"eta_min": 1}}}},
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_the_file_and_key(toy, train):
    raw = yaml.safe_load(small(toy, "sequential").read_text())
    raw["common"]["train"] |= train
    with pytest.raises(RunFileError, match=r"run\.yaml"):
        parse_run(yaml.safe_dump(raw), "run.yaml")


def test_numbers_as_yaml_reads_them_and_what_is_told():
    notes = []
    scheduler = {"name": "CosineAnnealingLR", "kwargs": {"eta_min": "1e-6", "T_max": 5}}
    given = {"optimizer": {"kwargs": {"lr": 1e-3}, "lr_scheduler": scheduler},
             "loss": {"name": "CrossEntropyLoss", "kwargs": {"ignore_index": 0, "reduction": "sum"}}}  # fmt: skip
    found = translated({"train": given}, notes.append)["train"]
    assert found["optimizer"]["lr_scheduler"] == {"name": "CosineAnnealingLR", "final": pytest.approx(1e-3)}
    assert [note.split(" is read")[0] for note in notes] == [
        "train.loss.kwargs.ignore_index", "train.loss.kwargs.reduction", "train.optimizer.lr_scheduler.kwargs.T_max",
    ]  # fmt: skip


def test_our_own_words_are_left_alone():
    from relay_core.config import recipes

    for path in recipes().values():
        run = load_run(path)
        for task_id in run.all_ids:
            assert translated(run._merged(task_id)) == run._merged(task_id)
        assert run.notes == []


def train(path, out, site=None):
    """What `relay train` does, in this process."""
    return run_relay(str(path), [], out, None, device="cpu", site=site, as_json=True)


@pytest.mark.parametrize("name", ["relay", "joint", "local", "sequential"])
def test_a_file_trains_to_its_end(toy, name, capsys):
    matrices = train(small(toy, name), toy.folder / "out")
    assert capsys.readouterr().err.count("note: train.pin_memory") == 1
    assert matrices["dice"].rows == {"joint": ["joint"]}.get(name, ["Domain1", "Domain2", "Domain3"])
    folders = ["joint"] if name == "joint" else ["task_1", "task_2", "task_3"]
    for folder in folders:
        assert list((toy.folder / "out" / folder).glob("step-*.safetensors"))


def test_a_deployment_goes_on_and_a_file_that_only_tests_is_evaluated(toy):
    train(small(toy, "relay"), toy.folder / "out", site=1)
    train(small(toy, "deployment"), toy.folder / "out")
    options = ["--run", small(toy, "test_only"), "--json"]
    scores = json.loads(relay("evaluate", toy.folder / "out/task_2", *options).stdout.splitlines()[-1])
    assert list(scores) == ["Domain1", "Domain2", "Domain3"]


def test_weights_that_are_not_at_hand(toy, monkeypatch):
    monkeypatch.delenv("RELAY_PRETRAINED", raising=False)
    path = small(toy, "relay")
    raw = yaml.safe_load(path.read_text())
    raw["common"]["model"]["kwargs"]["solver_kwargs"] = {"in_channels": 3, "num_classes": 3, "backbone": "resnet18"}
    first = raw["current_tasks"]["task_confs"][1]
    raw["current_tasks"]["task_confs"][1] = merge(first, {"model": {"kwargs": {"solver_kwargs": {"pretrain": True}}}})
    path.write_text(yaml.safe_dump(raw))
    done = relay("train", path, "--site", 1, "--out", toy.folder / "out", check=False)
    assert done.returncode == 5
    assert "relay convert-checkpoint --pretrained" in done.stderr
    assert "--without-pretrained" in done.stderr
    relay("train", path, "--site", 1, "--out", toy.folder / "out", "--without-pretrained")
