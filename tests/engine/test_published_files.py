"""Run files of the published code, every key of them: read as they stand, all strategies, both ways to play them."""

import pytest
import torch
import yaml

from relay_core.config import load_run
from relay_core.engine import RelayRun
from relay_core.engine.checkpoint import newest
from tests.config.test_runfile import PUBLISHED
from tests.conftest import MODEL

KEYS = """
random_seed num_workers dataset strategy model train name kwargs num_mimgs batch_size precision loss optimizer lr_scheduler
joint_training gradient_clip accumulate_grad_batches check_val_every_n_epoch log_every_n_steps solver_num_mimgs
sync_batchnorm
all_tasks_datasets task_id task_name img_folder current_tasks task_ids task_confs checkpoint load resume save dir root_path
Windows Darwin Linux optimizer_conf G D M img_resolution img_channels label_num_classes z_img_dim z_label_dim c_img_dim
c_label_dim w_img_dim w_label_dim G_img_kwargs G_label_kwargs D_img_kwargs D_label_kwargs mapping_kwargs num_layers
synthesis_kwargs channel_base channel_max solver_name solver_kwargs num_stages weighted_merge label_noise style_mixing_prob
replay_w_truncation replay_keep_batch_size replay_data_ratio replay_c_select_mode replay_post_aug task_merge_replay
G_reg_interval
D_reg_interval pl_weight r1_gamma solver_distil_weight distil_tau aug_conf_img aug_conf_label ada_target_img ada_target_label
aug_p_range_img aug_p_range_label ada_interval ada_kimg train_gan train_solver
""".split()  # noqa: SIM905
"""Every key that the published run files have."""


def keys(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from keys(inner)
    for inner in value if isinstance(value, list) else ():
        yield from keys(inner)


def published(toy, **common):
    """The published file, at a size that a test can train, over two of the toy's sites."""
    raw = yaml.safe_load(PUBLISHED)
    raw["common"]["root_path"] = {"Windows": "D:/nowhere", "Darwin": "/nowhere", "Linux": str(toy.data)}
    kwargs = raw["common"]["model"]["kwargs"]
    kwargs |= {**{k: v for k, v in MODEL.items() if k != "solver_kwargs"}, "ada_kimg": 0.01}
    kwargs["solver_kwargs"] |= MODEL["solver_kwargs"]
    raw["common"]["train"] |= {"num_mimgs": 32e-6, "batch_size": 8}
    raw["common"]["dataset"]["kwargs"]["img_size"] = 16
    raw["common"] |= common
    for entry in raw["all_tasks_datasets"]:
        entry["kwargs"]["img_folder"] = entry["kwargs"]["task_name"]
    path = toy.folder / "published.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def test_the_file_has_every_key_and_every_key_is_known(toy):
    raw = yaml.safe_load(PUBLISHED)
    assert set(KEYS) - set(keys(raw)) == set()
    load_run(str(published(toy)))


UNET = {"name": "U-Net", "kwargs": {"in_channels": 3, "num_classes": 3, "base_channels": 4}}
CASES = {
    "relay": {},
    "baseline": {"strategy": {"name": "baseline", "kwargs": {}}, "model": UNET},
    "joint": {"strategy": {"name": "baseline"}, "model": UNET},
    "si": {"strategy": {"name": "si", "kwargs": {"c": 0.5, "xi": 1}}, "model": UNET},
    "owm": {"strategy": {"name": "owm", "kwargs": {"alpha": 1.0}}, "model": UNET},
}


@pytest.mark.parametrize("case", CASES)
def test_all_sites_in_one_process_and_one_site_of_a_deployment_end_alike(toy, case):
    """The second site alone, from the folder that the first one left, learns what it learns in one process."""
    path = published(toy, **CASES[case])
    overrides = ["train.joint_training=true"] if case == "joint" else []
    device = torch.device("cpu")
    whole = RelayRun(load_run(str(path), overrides), toy.folder / "whole", None, device)()
    assert len(whole["dice"].columns) == 2
    if case == "joint":
        assert whole["dice"].rows == ["joint"]
        return
    for site in (1, 2):
        RelayRun(load_run(str(path)), toy.folder / "parts", None, device, only=site)()
    for site in ("task_1", "task_2"):
        assert newest(toy.folder / "parts" / site, print).digest == newest(toy.folder / "whole" / site, print).digest


@pytest.mark.parametrize("precision", [16, 32, 64])
def test_every_precision_trains_on_a_cpu(toy, precision):
    raw = yaml.safe_load(published(toy).read_text())["common"]["train"] | {"precision": precision, "num_epochs": 1}
    raw.pop("num_mimgs")
    run = load_run(str(published(toy, train=raw)))
    assert run.site(1).train.steps(16) == 2
    RelayRun(run, toy.folder / "out", None, torch.device("cpu"), only=1)()
    solver = newest(toy.folder / "out/task_1", print).network("solver")
    assert solver["head.weight"].dtype == (torch.float64 if precision == 64 else torch.float32)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("mediastinum-tumor", {"img_channels": 1, "background_label": True, "hu_min": -1000, "num_classes": 3}),
        ("mediastinum-tumor", {"img_channels": 1, "task": "classification", "class_by": "site", "num_classes": 3}),
        ("midline", {"img_channels": 1, "num_classes": 3, "background_label": True, "negatives_per_positive": 0}),
    ],
)
def test_the_other_data_sets_of_the_paper_are_read(toy, name, kwargs):
    raw = yaml.safe_load(published(toy).read_text())
    raw["common"]["dataset"] = {"name": name, "kwargs": kwargs}
    model = raw["common"]["model"]["kwargs"]
    model |= {"img_channels": 1, "task": kwargs.get("task", "segmentation")}
    model["solver_kwargs"]["in_channels"] = 1
    path = toy.folder / "other.yaml"
    path.write_text(yaml.safe_dump(raw))
    for site in load_run(str(path)).sites():
        site.require_consistent()
