"""Checkpoints as the published code leaves them, with the reference's weights, its keys, and what is skipped."""

import json
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relay_core.config import RunFile, load_run
from relay_core.models import published
from tests.reference import FOLDER, tensors

NUMBERS = {
    "model.cur_stage": 2, "model.augment_pipe_img.p": 0.25, "model.augment_pipe_label.p": 0.125, "model.pl_mean_img": 1.5,
    "model.pl_mean_label": 0.5, "model.merge_weight": 0.5,
}  # fmt: skip
BANKS = {
    "cs_previous_task": {"Domain1": {"task_name": "Domain1", "id": 0, "frequency": 360}},
    "cs_current_task": {"Domain2": {"task_name": "Domain2", "id": 1, "frequency": 240}},
}


def weights() -> dict[str, Tensor]:
    """The reference's, by their published names; the solver's as float32, as a checkpoint holds them."""
    solver = tensors("solver_unet_resnet18")
    return {
        **tensors("generators_discriminators"),
        **{k: v.float() if v.is_floating_point() else v for k, v in solver.items()},
    }


@cache
def state_dict() -> "OrderedDict[str, Tensor]":
    """Every key of the reference's small checkpoint; copies of earlier networks share the current ones' memory.

    The same object each time: copy it before you change it.
    """
    keys = json.loads((FOLDER / "checkpoint_keys.json").read_text())["small"]["state_dict"]
    real = weights()
    state: OrderedDict[str, Tensor] = OrderedDict()
    for key, (shape, dtype) in keys.items():
        name = key.removeprefix("model.")
        value = real.get(name, real.get(name.replace("_old.", ".")))
        if value is None:
            value = torch.full(shape, NUMBERS.get(key, 0), dtype=getattr(torch, dtype))
        assert list(value.shape) == shape, key
        state[key] = value
    state["model.fid_img.inception.weight"] = torch.full((64,), torch.nan)
    state["model.fid_label.inception.weight"] = torch.full((64,), torch.nan)
    return state


def lightning(state: dict[str, Tensor], **top: object) -> dict[str, Any]:
    """A Lightning checkpoint around a state dict."""
    moments = {"step": torch.tensor(9.0), "exp_avg": torch.zeros(4), "exp_avg_sq": torch.zeros(4)}
    return {
        "epoch": 18, "global_step": 74, "pytorch-lightning_version": "2.1.0", "state_dict": state,
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": None, "dirpath": "runs/task_2"}},
        "optimizer_states": [{"state": {0: moments}, "param_groups": [{"lr": 0.002, "betas": (0.0, 0.99)}]}],
        "lr_schedulers": [], "RL_meta": BANKS, "all_tasks_max_epochs": 18, "current_task_max_epochs": 12, **top,
    }  # fmt: skip


def saved(path: Path, content: object, **options: Any) -> Path:
    """`content` as `torch.save` writes it."""
    torch.save(content, path, **options)
    return path


class Call:
    """What a malicious file holds: a call, made by whoever unpickles it."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.made = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.made


CPU = torch.device("cpu")
TOLERANCE = {"rtol": 0, "atol": 2e-5}


VALUES = ["model.kwargs.label_head=value"]
"""The published label generator draws values."""


def run(*overrides: str) -> RunFile:
    """The recipe of the reference's sizes; two steps a site."""
    return load_run("fundus-cpu", ["train.num_mimgs=8e-6", "train.batch_size=4", "num_workers=0", *VALUES, *overrides])


def values(prefix: str) -> dict[str, Tensor]:
    """Inputs and outputs of one of the reference's networks."""
    return published.strip_prefix({k.replace("/", ".", 1): v for k, v in tensors("networks").items()}, prefix)
