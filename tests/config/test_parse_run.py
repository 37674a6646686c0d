"""A run file that came from outside: what it may extend, its canonical form, paths that lead out."""

import pytest
import yaml

from relay_core.config import load_run, parse_run, recipes
from relay_core.config.reading import MAX_BYTES
from relay_core.errors import RunFileError

FUNDUS = "extends: fundus\n"


def all_settings(run):
    return [run.site(i) for i in run.all_ids]


def test_text_gives_what_the_same_file_gives(toy):
    path = toy.write()
    run = parse_run(path.read_text())
    assert all_settings(run) == all_settings(load_run(str(path)))
    assert run.digest == load_run(str(path)).digest
    assert str(run.path) == "run.yaml"


def test_a_recipe_can_be_extended_and_no_file(tmp_path, monkeypatch):
    run = parse_run("extends: phantom-sequential\ncommon: {train: {batch_size: 8}}")
    assert {site.train.batch_size for site in run.sites()} == {8}
    assert run.site(1).mode == "sequential"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(FUNDUS)
    assert load_run("base.yaml").task_ids == [1, 2, 3, 4, 5]
    for name in ("base.yaml", str(tmp_path / "base.yaml"), "../base.yaml", "/etc/passwd", str(recipes()["fundus"])):
        with pytest.raises(RunFileError, match=r"^up.yaml:2: only a recipe can be extended here, not .*; recipes: fundus"):
            parse_run(f"# mine\nextends: {name}\n", "up.yaml")
    with pytest.raises(RunFileError, match="did you mean 'fundus-cpu'"):
        parse_run("extends: fundus-cp")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "common: [",
        "comon: {}",
        "common: {}",
        "common: {}\nall_tasks_datasets: []\ncurrent_tasks: {task_ids: []}",
        FUNDUS + "common:\n  train: {bach_size: 1}",
        FUNDUS + "current_tasks: {task_ids: [9]}",
        FUNDUS + "current_tasks: {task_confs: {9: {}}}",
        FUNDUS + "current_tasks: {task_confs: {1: {checkpoint: {save: {dir: task_2}}}}}",
        FUNDUS + "# " + "x" * MAX_BYTES,
        FUNDUS + "common: {random_seed: \0}",
    ],
)
def test_text_is_refused_in_the_words_that_refuse_the_file(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(RunFileError) as of_file:
        load_run("run.yaml")
    with pytest.raises(RunFileError) as of_text:
        parse_run(text)
    assert str(of_text.value) == str(of_file.value)
    assert str(of_text.value).startswith("run.yaml")


ROWS = "\n".join(f"  b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]" for i in range(1, 12))
MERGES = "\n".join(f"  b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 9)}]}}" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"common:\n  b0: &b0 [1]\n{ROWS}", "more than 20000 values"),
        (f"common:\n  b0: &b0 {{x: 1}}\n{MERGES}", "more than 20000 values"),
        ("common: &a {dataset: *a}", "more than 20000 values"),
        ("common: " + "[" * 100000, "more than 20000 values"),
        ("common: " + "[" * 10000, "not valid YAML"),
        ("common: {random_seed: 0x" + "f" * 5000 + "}", "line 2: a number of more than 64 digits"),
        ("common: {dataset: {name: midline, kwargs: {a: !!set {x, y}}}}", "line 2: .*set is no kind of value"),
        ("common: {dataset: {name: midline, kwargs: {a: !!binary /w==}}}", "line 2: .*binary is no kind of value"),
        ("common: {a: \ud800}", "not valid YAML"),
        ("common: {a: !!python/name:os.system x}", "not valid YAML"),
    ],
)
def test_what_would_choke_the_reader_or_the_digest_is_refused(text, message):
    with pytest.raises(RunFileError, match=message):
        parse_run(FUNDUS + text)


@pytest.mark.parametrize("name", recipes())
def test_canonical_gives_the_same_settings_and_digest(name):
    run = load_run(name, ["train.batch_size=4", "model.kwargs.solver_kwargs.num_classes=3"] if "fundus" in name else [])
    text = run.canonical()
    again = parse_run(text)
    assert all_settings(again) == all_settings(run)
    assert again.digest == run.digest
    assert again.task_ids == run.task_ids
    assert again.canonical() == text, "a fixed point"
    assert "extends" not in yaml.safe_load(text)


def test_canonical_keeps_what_each_site_says(toy):
    raw = yaml.safe_load(toy.write().read_text())
    raw["common"]["train"]["loss"]["kwargs"] = {"gamma": 1e-9}
    raw["all_tasks_datasets"][1]["kwargs"]["task_name"] = "Zürich: süd #2"
    raw["current_tasks"]["task_confs"] = {2: {"train": {"batch_size": 4}, "checkpoint": {"load": None}}}
    run = parse_run(yaml.safe_dump(raw))
    again = parse_run(run.canonical())
    assert all_settings(again) == all_settings(run)
    assert again.site(2).name == "Zürich: süd #2"
    assert "load" in again.site(2).checkpoint.model_fields_set
    assert again.digest == run.digest


OUTSIDE = """
extends: fundus
common:
  root_path: {Linux: /data, Windows: data}
  dataset: {name: folder, kwargs: {root_path: 'D:\\data', image_dir: image/../../x, mask_dir: mask}}
  model: {kwargs: {solver_kwargs: {pretrain_file: ~/weights}}}
  checkpoint: {resume: ../other, load: a..b/..c}
current_tasks:
  task_ids: [1, 2]
  task_confs:
    2:
      dataset: {kwargs: {img_folder: ..\\secret, split_file: /etc/split.csv}}
      checkpoint: {load: /root/x, save: {dir: ..}}
"""


def test_every_path_that_leads_outside_is_named():
    assert parse_run(OUTSIDE).outside_paths() == [
        "root_path.Linux: /data",
        "dataset.kwargs.root_path: D:\\data",
        "dataset.kwargs.image_dir: image/../../x",
        "checkpoint.resume: ../other",
        "dataset.kwargs.img_folder: ..\\secret",
        "dataset.kwargs.split_file: /etc/split.csv",
        "checkpoint.load: /root/x",
        "checkpoint.save.dir: ..",
    ]


@pytest.mark.parametrize("name", recipes())
def test_recipes_stay_inside(name):
    assert load_run(name).outside_paths() == []


def test_sites_that_are_only_tested_on_and_overrides_count(toy):
    raw = yaml.safe_load(toy.write().read_text())
    raw["all_tasks_datasets"][1]["kwargs"]["img_folder"] = "/elsewhere"
    raw["current_tasks"]["task_ids"] = [1]
    assert parse_run(yaml.safe_dump(raw)).outside_paths() == ["dataset.kwargs.img_folder: /elsewhere"]
    assert load_run(str(toy.write()), ["root_path=/r"]).outside_paths() == ["root_path: /r"]


def test_a_solver_alone_names_its_weights_too():
    text = "extends: fundus-cpu-sequential-plain\ncommon: {model: {name: U-Net, kwargs: {pretrain_file: /w}}}"
    assert parse_run(text).outside_paths() == ["model.kwargs.pretrain_file: /w"]
