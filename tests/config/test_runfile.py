"""Run files: merging, the published keys, and errors that say where."""

import pytest
import yaml

from relay_core.config import load_run, recipes
from relay_core.config.runfile import merge
from relay_core.errors import RunFileError


def change(toy, old, new):
    path = toy.write()
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size", "bach_size", r"run.yaml:\d+: unknown key 'train.bach_size'; did you mean 'batch_size'\?"),
        ("num_layers", "num_layer", r"run.yaml:\d+: unknown key '.*mapping_kwargs.num_layer'; did you mean 'num_layers'\?"),
        ("common:", "comon:", r"run.yaml:\d+: unknown key 'comon'; did you mean 'common'\?"),
        ("name: relay", "name: relais", r"strategy.name: 'relais' is not known; did you mean 'relay'\?"),
        ("batch_size: 8", "batch_size: eight", r"run.yaml:\d+: train.batch_size: .*valid integer"),
        (
            "img_folder: Domain2",
            "img_foldr: Domain2",
            r"unknown key 'dataset.kwargs.img_foldr'; did you mean 'img_folder'\?",
        ),
        ("num_mimgs:", "num_epochs: 2\n    num_mimgs:", r"either num_mimgs .* or num_epochs"),
        ("img_resolution: 16", "img_resolution: 24", r"power of two, not 24"),
        ("backbone: plain", "backbone: plain\n        pretrain: true", r"pretrain_file"),
        ("task_ids:\n  - 1", "task_ids:\n  - 7", r"there is no site 7"),
        ("name: explog", "name: explog\n      kwargs: {gama: 1}", r"kwargs.gama'; did you mean 'gamma'"),
        ("batch_size: 8", "batch_size: 8\n    optimizer: {kwargs: {lrr: 1}}", r"no argument 'lrr'; did you mean 'lr'"),
        ("task_name: Domain2", "task_name: Domain1", r"same task_name 'Domain1'"),
        ("img_resolution: 16", "img_resolution: 16\n      aug_p_range_img: [1, 0]", r"rising numbers"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_place(toy, old, new, message):
    with pytest.raises(RunFileError, match=message):
        load_run(str(change(toy, old, new)))


def test_line_numbers_are_those_of_the_file(toy):
    path = change(toy, "batch_size", "bach_size")
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "bach_size" in text)
    with pytest.raises(RunFileError, match=f"run.yaml:{line}:"):
        load_run(str(path))


def test_every_error_of_a_file_is_reported(toy):
    path = change(toy, "batch_size", "bach_size")
    path.write_text(path.read_text().replace("w_img_dim", "w_image_dim"))
    with pytest.raises(RunFileError, match=r"(?s)w_image_dim.*bach_size|bach_size.*w_image_dim"):
        load_run(str(path))


def test_a_site_overrides_common_key_by_key(toy):
    path = toy.write()
    raw = yaml.safe_load(path.read_text())
    raw["all_tasks_datasets"][1]["kwargs"]["num_replica"] = 3
    raw["current_tasks"]["task_confs"] = {2: {"train": {"batch_size": 4}, "checkpoint": {"load": None}}}
    path.write_text(yaml.safe_dump(raw))
    run = load_run(str(path))
    assert (run.site(1).train.batch_size, run.site(2).train.batch_size) == (8, 4)
    assert run.site(2).train.num_mimgs == run.site(1).train.num_mimgs
    assert (run.site(1).data.num_replica, run.site(2).data.num_replica) == (1, 3)
    assert run.site(2).checkpoint.load is None
    assert "load" in run.site(2).checkpoint.model_fields_set
    assert "load" not in run.site(1).checkpoint.model_fields_set


def test_overrides_win_everywhere(toy):
    run = load_run(str(toy.write()), ["train.batch_size=2", "model.kwargs.corrections.teacher=current"])
    assert [s.train.batch_size for s in run.sites()] == [2, 2]
    with pytest.raises(RunFileError, match="bach"):
        load_run(str(toy.write()), ["train.bach=2"])
    with pytest.raises(RunFileError, match="not valid YAML"):
        load_run(str(toy.write()), ["train.batch_size=[1"])
    with pytest.raises(RunFileError, match=r"key\.path=value"):
        load_run(str(toy.write()), ["train.batch_size"])


def test_the_digest_is_of_what_sites_share(toy):
    one = load_run(str(toy.write()))
    assert one.digest == load_run(str(toy.write("other.yaml", root_path="/elsewhere", num_workers=3))).digest
    assert one.digest != load_run(str(toy.write("third.yaml", random_seed=5))).digest


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_valid(name):
    run = load_run(name)
    for site in run.sites():
        site.require_consistent()
        assert site.train.steps(100) >= 1


def test_published_sets_every_switch_and_one_can_be_set_back(toy):
    kwargs = toy.run(model={"kwargs": {"published": True, "corrections": {"teacher": "previous"}}}).site(1).model.kwargs
    assert kwargs.corrections.frozen == "train"
    assert kwargs.corrections.teacher == "previous"
    assert kwargs.generator_ema_kimg == 0
    ours = toy.run().site(1).model.kwargs
    assert all(value != getattr(kwargs.corrections, name) for name, value in ours.corrections if name != "teacher")


def test_adam_follows_from_the_regularisation_interval(toy):
    ours = toy.run().site(1).model.kwargs
    assert ours.generator_optimizer.kwargs["lr"] == pytest.approx(0.002)
    assert ours.generator_optimizer.kwargs["betas"][1] == pytest.approx(0.99199, abs=1e-5)
    assert ours.discriminator_optimizer.kwargs["lr"] == pytest.approx(0.0025 * 8 / 9)
    published = toy.run(model={"kwargs": {"published": True}}).site(1).model.kwargs
    assert published.discriminator_optimizer.kwargs["lr"] == pytest.approx(0.002353, abs=1e-6)
    assert published.discriminator_optimizer.kwargs["betas"][1] == pytest.approx(0.990585, abs=1e-6)


PUBLISHED = """
common:
  random_seed: 1
  num_workers: 4
  root_path: {Windows: 'D:/data', Linux: /data, Darwin: /Users/data}
  dataset: {name: fundus, kwargs: {img_channels: 3, num_replica: 2}}
  strategy: {name: relay, kwargs: {}}
  model:
    name: doublegan
    kwargs:
      optimizer_conf:
        G: {name: Adam, kwargs: {lr: 0.002, betas: [0.0, 0.99199]}}
        D: {name: Adam, kwargs: {lr: 0.002353, betas: [0.0, 0.990585]}}
        M: {name: Adam, kwargs: {lr: 0.001}}
      img_resolution: 64
      img_channels: 3
      label_num_classes: 3
      z_img_dim: 128
      z_label_dim: 64
      c_img_dim: 32
      c_label_dim: 32
      w_img_dim: 256
      w_label_dim: 64
      G_img_kwargs: {mapping_kwargs: {num_layers: 4}, synthesis_kwargs: {channel_base: 8192, channel_max: 256}}
      G_label_kwargs: {mapping_kwargs: {num_layers: 2}, synthesis_kwargs: {channel_base: 4096, channel_max: 128}}
      D_img_kwargs: {channel_base: 8192, channel_max: 256}
      D_label_kwargs: {channel_base: 4096, channel_max: 128}
      solver_name: U-Net
      solver_kwargs: {in_channels: 3, num_classes: 3, bilinear: false, backbone: resnet18}
      num_stages: 2
      weighted_merge: true
      label_noise: 0.02
      style_mixing_prob: 0.8
      replay_w_truncation: 1.0
      replay_keep_batch_size: true
      replay_data_ratio: half
      replay_c_select_mode: uniform
      replay_post_aug: true
      task_merge_replay: false
      G_reg_interval: 4
      D_reg_interval: 8
      pl_weight: 2
      r1_gamma: 0.1
      solver_distil_weight: 0.5
      distil_tau: 2
      aug_conf_img: bgcfn
      aug_conf_label: bg
      ada_target_img: 0.6
      ada_target_label: 0.6
      aug_p_range_img: [0, 1]
      aug_p_range_label: [0, 1]
      ada_interval: 4
      ada_kimg: 500
      train_gan: true
      train_solver: true
  train:
    num_mimgs: 3
    batch_size: 16
    precision: 16
    loss: {name: explog, kwargs: {gamma: 0.3, weight: [1, 2, 2]}}
    optimizer: {name: Adam, kwargs: {lr: 0.001}, lr_scheduler: null}
    joint_training: false
    gradient_clip: null
    accumulate_grad_batches: 1
    check_val_every_n_epoch: 10
    log_every_n_steps: 50
    solver_num_mimgs: null
    sync_batchnorm: false
all_tasks_datasets:
  - kwargs: {task_id: 1, task_name: Domain1, img_folder: fundus/Domain1}
  - kwargs: {task_id: 2, task_name: Domain2, img_folder: fundus/Domain2}
current_tasks:
  task_ids: [1, 2]
  task_confs:
    1: {checkpoint: {load: null, resume: false, save: {dir: task_1}}}
    2: {checkpoint: {load: task_1/last.ckpt, resume: false, save: {dir: task_2}}}
"""


def test_a_published_run_file_is_read_as_it_stands(tmp_path):
    path = tmp_path / "published.yaml"
    path.write_text(PUBLISHED)
    run = load_run(str(path))
    assert [s.checkpoint.load for s in run.sites()] == [None, "task_1/last.ckpt"]
    assert run.site(1).train.steps(100) == 187500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is a mapping"),
        ("common: [", "not valid YAML"),
        ("common: {}\nall_tasks_datasets: []\ncurrent_tasks: {task_ids: []}", "task_ids"),
        ("common: {}", "all_tasks_datasets is missing"),
        ("extends: nobody", "no such run file"),
        ("extends: run.yaml", "extends itself"),
        ("a: &a [*a]", "more than 20000 values"),
    ],
)
def test_what_is_no_run_file(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(RunFileError, match=message):
        load_run(str(path))


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(RunFileError, match=r"recipes: .*fundus-cpu"):
        load_run("fundus-cp")


def test_merge_replaces_lists_and_keeps_what_is_not_named():
    assert merge({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}}) == {"a": {"b": 1, "c": [3]}}


@pytest.mark.parametrize(
    ("common", "message"),
    [
        ({"train": {"loss": {"kwargs": {"weight": [1, 2]}}}}, "weight has 2 numbers"),
        ({"dataset": {"kwargs": {"img_size": 48}}}, "img_size is 48"),
        ({"dataset": {"kwargs": {"num_classes": 2}}}, "3 classes"),
        ({"model": {"kwargs": {"task": "classification"}}}, "task is classification, dataset.kwargs.task is segmentation"),
        (
            {"strategy": {"name": "baseline"}, "model": {"name": "resnet18", "kwargs": {}}},
            "'resnet18' is for classification",
        ),
        ({"model": {"name": "U-Net"}}, "relay needs model doublegan"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_when_used(toy, common, message):
    with pytest.raises(RunFileError, match=message):
        toy.run(**common).site(1).require_consistent()


def test_replay_needs_a_target_that_teaches(toy):
    def targets(**kwargs):
        return toy.run(model={"kwargs": kwargs}).site(1).model.kwargs.replay_targets

    assert targets() == "soft"
    assert targets(solver_distil_weight=0) == "map"
    assert targets(corrections={"teacher": "current"}) == "map"


def test_a_discriminator_may_be_written_as_a_generator_is(toy):
    nested = {"mapping_kwargs": {"num_layers": 3}, "synthesis_kwargs": {"channel_base": 512, "channel_max": 8}}
    found = toy.run().site(1)
    raw = found.model_dump(mode="json")
    raw["model"]["kwargs"]["D_img_kwargs"] = nested
    kwargs = type(found).model_validate(raw).model.kwargs.D_img_kwargs
    assert (kwargs.channel_base, kwargs.channel_max, kwargs.mapping_kwargs.num_layers) == (512, 8, 3)
    assert "mapping_kwargs" not in found.shared()["model"]["kwargs"]["D_img_kwargs"]
    raw["model"]["kwargs"]["D_img_kwargs"] = {"synthesis_kwargs": {"chanel_base": 512}}
    with pytest.raises(ValueError, match="chanel_base"):
        type(found).model_validate(raw)


def test_another_name_takes_nothing_over():
    base = {"loss": {"name": "explog", "kwargs": {"gamma": 0.3}}}
    assert merge(base, {"loss": {"name": "dice"}}) == {"loss": {"name": "dice"}}
    assert merge(base, {"loss": {"kwargs": {"weight": [1]}}})["loss"]["kwargs"] == {"gamma": 0.3, "weight": [1]}
    solver = {"solver_name": "U-Net", "solver_kwargs": {"bilinear": True}, "num_stages": 1}
    assert merge(solver, {"solver_name": "resnet20", "solver_kwargs": {"norm": "group"}}) == {
        "solver_name": "resnet20", "solver_kwargs": {"norm": "group"}, "num_stages": 1
    }  # fmt: skip
    assert merge(solver, {"solver_kwargs": {"norm": "group"}})["solver_kwargs"] == {"bilinear": True, "norm": "group"}


def test_no_torch_at_start():
    import subprocess
    import sys

    code = "import sys, relay_core.config, relay_core.events, relay_core.errors; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_of_masses_of_values_is_refused_before_it_is_built(monkeypatch):
    """A tree of them takes 20 seconds to build."""
    from relay_core.config import parse_run, reading

    monkeypatch.setattr(reading.yaml, "compose", lambda *args, **kwargs: pytest.fail("the tree is built"))

    for text in ("a: [" + "[]," * 340_000 + "]", "? " * 500_000, "a: &x [1]\nb: [" + "*x, " * 250_000 + "]"):
        with pytest.raises(RunFileError, match=r"values|not valid YAML"):
            parse_run(text)


def test_instance_norm_of_single_pixels_is_refused_before_the_training(toy):
    kwargs = {"solver_kwargs": {"norm": "instance"}}
    with pytest.raises(RunFileError, match="at 16 pixels the deepest of U-Net are 1 x 1: take norm group, or at least 32"):
        toy.run(model={"kwargs": kwargs}).site(1).require_consistent()
    toy.run(model={"kwargs": kwargs | {"solver_resolution": 32}}).site(1).require_consistent()


def test_a_learning_rate_falls_by_the_power_that_nnunet_has(toy):
    sgd = {"name": "SGD", "kwargs": {"lr": 0.01, "momentum": 0.99, "nesterov": True}, "lr_scheduler": {"name": "poly"}}
    optimizer = toy.run(train={"optimizer": sgd}).site(1).solver_optimizer
    assert [optimizer.lr_factor(done) for done in (0.0, 0.5, 0.9, 1.0)] == pytest.approx([1, 0.5**0.9, 0.1**0.9, 0])
    sgd["lr_scheduler"]["final"] = 0.2
    ends_higher = toy.run(train={"optimizer": sgd}).site(1).solver_optimizer
    assert [ends_higher.lr_factor(done) for done in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.2 + 0.8 * 0.5**0.9, 0.2])
