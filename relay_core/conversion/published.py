"""Converts a Lightning checkpoint of the published code into the checkpoint that a site of relay would have handed over.

Weights, site banks, augmentation strength and path-length means are taken over. Left out are the Adam states, which no next
site loads; the frozen copies `*_old` (the networks as they came to that site: the next site freezes the current ones); and
the Inception networks of a metric. The published code has no averaged generators: they start as copies of the generators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from relay_core.bundle import is_count, is_name
from relay_core.config import DoubleGanKwargs, RunFile, SiteSettings
from relay_core.conversion.isolated import Contents, unpickled
from relay_core.engine import Checkpoint, checkpoint
from relay_core.errors import CheckpointError
from relay_core.models import published
from relay_core.replay import SiteBank, Slot
from relay_core.strategies import make_strategy

GAN = ("G_label", "G_img", "D_label", "D_img")
SHOWN = 5
"""The number of faults that an error message names; it only counts the others."""
State = dict[str, Tensor]
"""A state dict: maps the name of a weight to its tensor."""


def convert(source: Path, run: RunFile, task_id: int, out: Path, warn: Callable[[str], None]) -> Checkpoint:
    """Convert the checkpoint that the published code left after a site, and write it below `out` for the next site.

    Args:
        source: the `last.ckpt` of the published code.
        run: the run file, whose networks the weights must fit.
        task_id: the number of the site that was trained last.
        out: the folder of the trainings, the `--out` of `relay train`.
        warn: called with a text for each oddity that does not prevent the conversion.

    Raises:
        CheckpointError: `out` holds a training of that site already; the file cannot be read safely, or lacks something;
            its weights do not fit the run file's networks; or it belongs to another strategy.
        RunFileError: the run file has no such site, or its settings do not fit each other.
    """
    settings = run.site(task_id)
    settings.require_consistent()
    folder = out / settings.folder_name
    if any(folder.glob("step-*.safetensors")):
        raise CheckpointError(f"{folder} already holds a training of {settings.name}; choose another --out")
    contents = unpickled(source)
    if not contents.rest["checkpoint"]:
        raise CheckpointError(
            f"{source} has no state_dict, so it is no Lightning checkpoint; for pretrained weights: --pretrained"
        )
    relay = _is_relay(contents.tensors, settings, source)
    previous = _read_bank(contents.rest, "cs_previous_task", source)
    current = _read_bank(contents.rest, "cs_current_task", source)
    _check_banks(previous, current, settings, relay, source, warn)
    tensors = _fitted_tensors(
        _renamed_states(contents.tensors, settings, relay, source), _expected_networks(settings, relay), source
    )
    steps = _steps(contents.rest, settings, current.images)
    meta = {
        "run": run.digest,
        "site": settings.name,
        "task_id": task_id,
        "strategy": settings.strategy.name,
        "consumed": 0,
        "images": current.images,
        "steps": steps,
        "settings": settings.shared(),
        "sites": list(previous.joined(current).slots) or [settings.name],
        "looks": {},
        "state": _strategy_state(contents, previous, current, source) if relay else {},
        "optimizers": {},
        "converted": str(contents.rest.get("pytorch-lightning_version", "unknown")),
    }
    return checkpoint.write(folder, steps, meta, tensors)


def _is_relay(tensors: Mapping[str, Tensor], settings: SiteSettings, source: Path) -> bool:
    """Return whether the checkpoint has generators, which the run file's strategy must have too, or not have either.

    Raises:
        CheckpointError: the strategy is of another kind, or the relay is one for classification.
    """
    relay = any(key.startswith("model.G_img.") for key in tensors)
    if relay != settings.facts.has_generators:
        contents = "a relay's generators" if relay else "no generators, a solver alone"
        raise CheckpointError(f"{source} holds {contents}, and the run file's strategy is {settings.strategy.name}")
    if relay and cast(DoubleGanKwargs, settings.model.kwargs).label_head != "value":
        raise CheckpointError(
            f"{source}: its label generator draws values, and the run file's draws classes: set model.kwargs.label_head: "
            "value, and keep it for the rest of this relay"
        )
    if relay and settings.data.task == "classification":
        raise CheckpointError(f"{source}: a relay for classification has other networks here than the published one")
    return relay


def _renamed_states(tensors: Mapping[str, Tensor], settings: SiteSettings, relay: bool, source: Path) -> dict[str, State]:
    """Return the published weights under relay's names, by network. Raises CheckpointError."""
    classifies = settings.data.task == "classification"
    solver = published.strip_prefix(tensors, "model.solver") or published.strip_prefix(tensors, "model")
    solver = (published.classifier_state if classifies else published.unet_state)(solver)
    if not relay:
        return {"solver": solver}
    states = {name: published.strip_prefix(tensors, f"model.{name}") for name in GAN}
    try:
        renamed = {
            name: (published.generator_state if name.startswith("G_") else published.discriminator_state)(state)
            for name, state in states.items()
        }
    except RuntimeError as error:
        raise CheckpointError(f"{source}: its generators do not hold together: {error}") from None
    return {**renamed, "solver": solver}


def _expected_networks(settings: SiteSettings, relay: bool) -> dict[str, State]:
    """Return the networks that the run file describes, by name, as tensors on the device `meta`, which take no memory."""
    meta = torch.device("meta")
    with meta:
        strategy = make_strategy(settings.without_pretraining(), meta)
    names = [name for name in strategy.hand_over() if name != "styles"] if relay else ["solver"]  # it kept no colours
    return {name: strategy.networks[name].state_dict() for name in names}


def _fitted_tensors(published_states: Mapping[str, State], expected_states: Mapping[str, State], source: Path) -> State:
    """Return the tensors for relay's checkpoint, cast to the types of the run file's networks.

    Args:
        published_states: the published weights under relay's names, by network.
        expected_states: the run file's networks; an averaged generator (`*_ema`) takes the weights of its generator.
        source: the file of the weights, for the error message.

    Raises:
        CheckpointError: weights are missing, unknown, of another shape, or not finite.
    """
    result: State = {}
    faults: list[str] = []
    for network, expected in expected_states.items():
        name = network.removesuffix("_ema")
        state = published_states[name]
        faults += [f"{name}: {key} is missing" for key in expected if key not in state]
        faults += [f"{name}: {key} is not known" for key in state if key not in expected]
        for key in (key for key in expected if key in state):
            value, target = state[key], expected[key]
            if value.shape != target.shape or value.is_floating_point() != target.is_floating_point():
                faults.append(f"{name}: {key} is {list(value.shape)}, the run file's network has {list(target.shape)}")
            elif not value.isfinite().all():
                faults.append(f"{name}: {key} holds numbers that are not finite")
            else:
                result[f"network/{network}/{key}"] = value.to(target.dtype, copy=True)
    faults = list(dict.fromkeys(faults))  # an averaged generator repeats the faults of its generator
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        shown = "; ".join(faults[:SHOWN])
        raise CheckpointError(f"{source} does not fit the networks of the run file, compare their sizes: {shown}{more}")
    return result


def _read_bank(values: Mapping[str, Any], key: str, source: Path) -> SiteBank:
    """Read one of the two site banks; it is empty where the file has none, as a solver's may. Raises CheckpointError."""
    slots = (values.get("RL_meta") or {}).get(key) or {}
    try:
        sound = all(is_name(name) and is_count(slot["id"]) and is_count(slot["frequency"]) for name, slot in slots.items())
    except (AttributeError, KeyError, TypeError):
        sound = False
    if not sound:
        raise CheckpointError(f"{source}: its site bank RL_meta.{key} is not one of names with an id and a frequency")
    return SiteBank({name: Slot(slot["id"], slot["frequency"]) for name, slot in slots.items()})


def _check_banks(
    previous: SiteBank, current: SiteBank, settings: SiteSettings, relay: bool, source: Path, warn: Callable[[str], None]
) -> None:
    if settings.name not in current.slots and (current.slots or not relay):
        origin = f"was trained last at {', '.join(current.slots)}" if current.slots else "does not say where it was trained"
        warn(f"{source} {origin}; it is taken as that of {settings.name}")
    if not relay:
        return
    kwargs = cast(DoubleGanKwargs, settings.model.kwargs)
    slots = list(previous.joined(current).slots.values())
    ids = {slot.id for slot in slots}
    slots_valid = all(slot.id < min(kwargs.c_img_dim, kwargs.c_label_dim) and slot.frequency for slot in slots)
    if not current.slots or len(ids) < len(slots) or not slots_valid:
        raise CheckpointError(
            f"{source}: its site bank is not sound: no current site, no images, or slots out of range or taken twice"
        )


def _steps(values: Mapping[str, Any], settings: SiteSettings, images: int) -> int:
    """Return steps with which the site counts as finished: the larger of the file's count and the run file's budget."""
    steps_done = values.get("global_step")
    budget = settings.train.steps(images * settings.data.num_replica)
    return max(1, steps_done, budget) if isinstance(steps_done, int) and is_count(steps_done) else max(1, budget)


def _strategy_state(contents: Contents, previous: SiteBank, current: SiteBank, source: Path) -> dict[str, Any]:
    """Return what `RelayStrategy.state` gives at the end of a site. Raises CheckpointError."""

    def number(key: str) -> float:
        value = contents.tensors.get(f"model.{key}")
        if value is None or value.numel() != 1 or not value.isfinite().all():
            raise CheckpointError(f"{source}: model.{key} is missing, or not a finite number")
        return float(value)

    def game(kind: str) -> dict[str, Any]:
        # The discriminator signs since the last adjustment are dropped, because the file does not have their count.
        probability = min(max(number(f"augment_pipe_{kind}.p"), 0.0), 1.0)
        return {"ada": {"p": probability, "sign_sum": 0.0, "count": 0}, "path_mean": number(f"pl_mean_{kind}")}

    return {
        "previous": previous.to_json(),
        "current": current.to_json(),
        "stage": min(max(int(number("cur_stage")), 1), 3),  # for information only: the next site starts in stage 1
        "label": game("label"),
        "img": game("img"),
        "frozen": [],
    }
