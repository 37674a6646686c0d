"""Read the words of the published run files: their names and keys become ours, or a note says why they mean nothing here.

Nothing is read otherwise than before in a file that uses our own words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Kwargs = dict[str, Any]

_NORMS = {"bn": "batch", "ln": "layer", "in": "instance", "gn": "group", None: "none"}
_ACTIVATIONS = {"leaky_relu": "lrelu", "celu": "elu"}
_LOSSES = {
    "MSE": "mse", "BCE": "bce", "CrossEntropyLoss": "cross_entropy", "CrossEntropyND": "cross_entropy",
    "WeightedCrossEntropyLoss": "cross_entropy", "ExpLogLoss": "explog", "GDiceLoss": "generalised_dice",
    "GDiceLossV2": "generalised_dice", "PenaltyGDiceLoss": "generalised_dice", "SoftDiceLoss": "dice", "IoULoss": "iou",
    "TverskyLoss": "tversky", "FocalTverskyLoss": "focal_tversky", "AsymLoss": "asymmetric", "SSLoss": "asymmetric",
    "DCAndCELoss": "dice_ce", "DCAndTopKLoss": "dice_topk", "TopKLoss": "dice_topk", "DistillationLoss": "cross_entropy",
}  # fmt: skip
"""Class name of a loss -> its name here."""
_OF_TORCH: dict[str, tuple[Any, ...]] = {
    "size_average": (True,), "ignore_index": (-100,), "reduce": (True,), "reduction": ("mean",), "label_smoothing": (0,),
    "aggregate": ("sum",), "square": (False,), "tau": (), "logits": (),
}  # fmt: skip
"""Setting of the published losses that ours do not have -> values that change nothing."""
_CLOSE = {
    "PenaltyGDiceLoss": "its penalty is not here: generalised Dice alone is used",
    "SSLoss": "it is read as the asymmetric similarity loss",
    "TopKLoss": "it is read with a Dice term beside it",
    "DistillationLoss": "distillation is the model's (solver_distil_weight): cross entropy is used on labels",
}
_MEANINGLESS: dict[str, dict[str, str]] = {
    "train": {
        "pin_memory": "images go to the device without a setting",
        "prefetch": "images are in memory, or decoded ahead of need where a set is too large for that",
        "reload_dataloaders_every_epoch": "the files are checked once, before the training",
        "fast_dev_run": "a try is a small num_mimgs",
    },
    "strategy": {
        "strict_load_state_dict": "a checkpoint always fits exactly, or is refused",
        "freeze_module_names": "no part of a network is frozen",
        "load_state_dict_from_ckpt": "task_confs.N.checkpoint.load says what a site starts from",
        "load_state_dict_param_prefix": "a checkpoint always fits exactly, or is refused",
        "load_metric_table_from_ckpt": "the scores of earlier sites are always kept",
        "binary_positive_label": "every class is scored",
        "rgb_inputs": "pictures have the colours of the images",
        "additional_metrics": "all metrics of the task are always computed",
        "owm_module_names": "every layer with weights is projected",
    },
    "dataset": {
        "use_roi": "both forms of the folder are found by themselves",
        "pseudo_label": "masks are read as they are",
    },
    "model": {
        "solver_steps_ratio": "the solver learns at every step",
        "zero_init_residual": "the last norm of a block starts at 1",
    },
}
"""Part of the file -> key that has no meaning here -> why."""
_OF_STANDARD_RESNETS = {"groups": 1, "width_per_group": 64, "replace_stride_with_dilation": None}


def translated(merged: Mapping[str, Any], note: Callable[[str], object] = lambda text: None) -> dict[str, Any]:
    """Return the merged settings of a site in our words.

    Args:
        merged: settings of one site, as the run file has them.
        note: called with a line for each key that is read and has no meaning here.
    """
    result = dict(merged)
    for part, translate in (("dataset", _dataset), ("strategy", _strategy), ("model", _model)):
        if isinstance(choice := merged.get(part), Mapping):
            kwargs = choice.get("kwargs")
            result[part] = translate(dict(choice), dict(kwargs) if isinstance(kwargs, Mapping) else kwargs, note)
    if isinstance(train := merged.get("train"), Mapping):
        result["train"] = _train(dict(train), note)
    return result


def _drop(part: str, kwargs: Kwargs, note: Callable[[str], object], prefix: str) -> None:
    """Take out keys that have no meaning here; one that is off or empty needs no note."""
    for key, why in _MEANINGLESS[part].items():
        if key in kwargs and kwargs.pop(key) not in (None, False, [], ""):
            note(f"{prefix}.{key} is read and has no effect: {why}")


def _rename(kwargs: Kwargs, names: Mapping[str, str]) -> None:
    for old, new in names.items():
        if old in kwargs:
            kwargs[new] = kwargs.pop(old)


def _dataset(choice: Kwargs, kwargs: Any, note: Callable[[str], object]) -> Kwargs:
    if not isinstance(kwargs, dict):
        return choice
    size = kwargs.get("img_size")
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        kwargs["img_size"] = size[0]
    _drop("dataset", kwargs, note, "dataset.kwargs")
    if choice.get("name") in ("mediastinum-tumor", "midline"):
        _rename(kwargs, {"add_bg_label": "background_label", "add_bone_label": "bone_label",
                         "neg_pos_ratio": "negatives_per_positive", "num_test_samples": "test_count"})  # fmt: skip
        if "train_ratio" in kwargs:
            kwargs["test_share"] = round(1 - kwargs.pop("train_ratio"), 9)
        if "study_wise" in kwargs:
            kwargs["split_by"] = "study" if kwargs.pop("study_wise") else "slice"
        if "drop_negative" in kwargs and kwargs.pop("drop_negative"):
            kwargs["negatives_per_positive"] = 0
    return {**choice, "kwargs": kwargs}


def _strategy(choice: Kwargs, kwargs: Any, note: Callable[[str], object]) -> Kwargs:
    if not isinstance(kwargs, dict):
        return choice
    if kwargs.get("load_state_dict_from_ckpt") is True:
        del kwargs["load_state_dict_from_ckpt"]
    if kwargs.get("load_metric_table_from_ckpt") is True:
        del kwargs["load_metric_table_from_ckpt"]
    _drop("strategy", kwargs, note, "strategy.kwargs")
    if "load_state_dict_from_previous_task" in kwargs:
        goes_on = kwargs.pop("load_state_dict_from_previous_task")
        if choice.get("name") == "baseline" and not goes_on:
            kwargs.setdefault("mode", "local")
        elif not goes_on:
            note("strategy.kwargs.load_state_dict_from_previous_task is read and has no effect: checkpoint.load says so")
    if choice.get("name") == "owm":
        _rename(kwargs, {"a_lambda": "decay"})
    return {**choice, "kwargs": kwargs}


def _model(choice: Kwargs, kwargs: Any, note: Callable[[str], object]) -> Kwargs:
    if not isinstance(kwargs, dict):
        return choice
    if choice.get("name") == "doublegan":
        for key in ("aug_p_range_img", "aug_p_range_label"):
            if kwargs.get(key, 0) is None:
                del kwargs[key]
        _drop("model", kwargs, note, "model.kwargs")
        if isinstance(solver := kwargs.get("solver_kwargs"), Mapping):
            kwargs["solver_kwargs"] = _solver(dict(solver), note, "model.kwargs.solver_kwargs")
        if isinstance(optimizers := kwargs.get("optimizer_conf"), Mapping):
            prefix = "model.kwargs.optimizer_conf"
            kwargs["optimizer_conf"] = {
                key: _optimizer(dict(value), note, f"{prefix}.{key}") if isinstance(value, Mapping) else value
                for key, value in optimizers.items()
            }
    else:
        kwargs = _solver(kwargs, note, "model.kwargs")
    return {**choice, "kwargs": kwargs}


def _solver(kwargs: Kwargs, note: Callable[[str], object], prefix: str) -> Kwargs:
    _drop("model", kwargs, note, prefix)
    _rename(kwargs, {"nl": "activation"})
    for key, words in (("norm", _NORMS), ("activation", _ACTIVATIONS)):
        if key in kwargs and not isinstance(kwargs[key], list | dict):
            kwargs[key] = words.get(kwargs[key], kwargs[key])
    if kwargs.get("backbone") == "conv":
        kwargs["backbone"] = "plain"
    for key, standard in _OF_STANDARD_RESNETS.items():
        if key in kwargs and kwargs[key] in (standard, False, [False, False, False]):
            del kwargs[key]
    return kwargs


def _train(train: Kwargs, note: Callable[[str], object]) -> Kwargs:
    _drop("train", train, note, "train")
    if train.get("gradient_clip") == 0:
        train["gradient_clip"] = None
    if isinstance(loss := train.get("loss"), Mapping) and loss.get("name") in _LOSSES:
        train["loss"] = _loss(str(loss["name"]), dict(loss.get("kwargs") or {}), note)
    if "optimizer" in train and train["optimizer"] is None:
        del train["optimizer"]
    if isinstance(optimizer := train.get("optimizer"), Mapping):
        train["optimizer"] = _optimizer(dict(optimizer), note, "train.optimizer")
    return train


def _loss(name: str, kwargs: Kwargs, note: Callable[[str], object]) -> Kwargs:
    if name in _CLOSE:
        note(f"train.loss.name {name}: {_CLOSE[name]}")
    if name == "ExpLogLoss":
        dice = {"batch_dice": False, "do_bg": True, "smooth": 1.0, "square": False} | (kwargs.pop("dice_kwargs", None) or {})
        weight = (kwargs.pop("wce_kwargs", None) or {}).get("weight", kwargs.pop("weight", None))
        kwargs["dice"] = {"per_sample": not dice["batch_dice"], "background": dice["do_bg"], "smooth": dice["smooth"],
                          "square": dice["square"], "generalised": not kwargs.pop("soft_dice", True)}  # fmt: skip
        kwargs["weight"] = weight
        return {"name": "explog", "kwargs": kwargs}
    for inner in ("tversky_kwargs", "gdice_kwargs", "soft_dice_kwargs", "ce_kwargs"):
        kwargs |= kwargs.pop(inner, None) or {}
    _rename(kwargs, {"do_bg": "background"})
    if "batch_dice" in kwargs:
        batch = kwargs.pop("batch_dice")
        if name in ("SoftDiceLoss", "IoULoss"):
            kwargs["per_sample"] = not batch
        elif not batch:
            note(f"train.loss.kwargs.batch_dice is read and has no effect: {_LOSSES[name]} is over the whole batch")
    if isinstance(percent := kwargs.get("k"), int | float) and percent >= 1:
        kwargs["k"] = percent / 100
    for key, neutral in _OF_TORCH.items():
        if key in kwargs and kwargs.pop(key) not in (None, *neutral):
            note(f"train.loss.kwargs.{key} is read and has no effect: {_LOSSES[name]} has no such setting")
    return {"name": _LOSSES[name], "kwargs": kwargs}


def _optimizer(optimizer: Kwargs, note: Callable[[str], object], prefix: str) -> Kwargs:
    scheduler = optimizer.get("lr_scheduler")
    if not isinstance(scheduler, Mapping):
        return optimizer
    kwargs = dict(scheduler.get("kwargs") or {})
    name = scheduler.get("name")
    lr = (optimizer.get("kwargs") or {}).get("lr", 0.001)
    match name:
        case "CosineAnnealingLR" if kwargs:
            final = float(kwargs.pop("eta_min", 0.0)) / float(lr)
        case "LinearLR":
            name, final = "linear", float(kwargs.pop("end_factor", 1.0))
        case "ConstantLR":
            name, final = "constant", 0.0
        case _:
            return optimizer
    for key in kwargs:
        note(f"{prefix}.lr_scheduler.kwargs.{key} is read and has no effect: the rate follows the site's budget")
    return {**optimizer, "lr_scheduler": {"name": name, **({"final": final} if final else {})}}
