"""Checkpoints: one safetensors file each, with everything that is not a tensor as JSON in its header.

Tensors are named `network/<name>/<key>`, `optimizer/<name>/<parameter>/<key>` and `rng/<device>`. The header's `digest`
is the SHA-256 over the tensors and the JSON, so that a flipped byte is noticed before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from relay_core.errors import CheckpointError
from relay_core.files import replace_with
from relay_core.strategies import Strategy

FORMAT = 1
KEEP = 2
_NAME = re.compile(r"step-(\d{8})\.safetensors$")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose digest has been verified."""

    path: Path
    digest: str
    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    def network(self, name: str) -> dict[str, Tensor]:
        """The state of one network.

        Raises:
            CheckpointError: it is not in here.
        """
        prefix = f"network/{name}/"
        found = {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}
        if not found:
            raise CheckpointError(f"{self.path}: holds no network {name!r}; it has {', '.join(self.networks)}")
        return found

    @property
    def networks(self) -> list[str]:
        """Names of the networks."""
        return list(dict.fromkeys(key.split("/")[1] for key in self.tensors if key.startswith("network/")))


def content_digest(meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the canonical JSON and, by name, each tensor's type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def write(folder: Path, step: int, meta: dict[str, Any], tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Write `step-<step>.safetensors` atomically, then `tidy`.

    Raises:
        CheckpointError: the disk is full or not writable; what was there before is still there.
    """
    meta = {**meta, "format": FORMAT, "step": step}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = content_digest(meta, plain)
    path = folder / f"step-{step:08d}.safetensors"
    header = {"relay": json.dumps(meta, sort_keys=True), "digest": digest}
    try:
        replace_with(path, lambda temporary: save_file(plain, temporary, header))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the checkpoint could not be written: {error}") from error
    tidy(folder)
    return Checkpoint(path, digest, meta, plain)


def tidy(folder: Path) -> None:
    """Remove all but the last `KEEP` checkpoints, and what a killed process left half-written."""
    for left in (*sorted(_files(folder), key=_step)[:-KEEP], *folder.glob(".writing-*")):
        left.unlink()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*.safetensors") if _NAME.search(path.name)]


def _step(path: Path) -> int:
    found = _NAME.search(path.name)
    return int(found.group(1)) if found else -1


def read(path: Path) -> Checkpoint:
    """Read a checkpoint and verify its digest.

    Raises:
        CheckpointError: no such file, not a checkpoint of ours, damaged, or of a newer format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({error})") from None
    try:
        meta = json.loads(header["relay"])
        wanted, version = header["digest"], int(meta["format"])
    except (KeyError, ValueError, TypeError):
        raise CheckpointError(f"{path}: damaged or not a checkpoint of relay (its header is not readable)") from None
    if version > FORMAT:
        raise CheckpointError(f"{path}: written by a newer version of relay (format {version}); update to read it")
    if content_digest(meta, tensors) != wanted:
        raise CheckpointError(f"{path}: damaged: its content does not match its digest; use an older checkpoint")
    return Checkpoint(path, wanted, meta, tensors)


def newest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint of a folder that is whole, or None in a folder without any.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    files = sorted(_files(folder), key=_step, reverse=True)
    for path in files:
        try:
            return read(path)
        except CheckpointError as error:
            warn(f"skipped: {error}")
    if files:
        raise CheckpointError(f"{folder}: all {len(files)} checkpoints are damaged; start this site anew")
    return None


def find(path: Path, warn: Callable[[str], None]) -> Checkpoint:
    """A checkpoint by its file, by its site's folder, or by the published code's `<folder>/last.ckpt`.

    Raises:
        CheckpointError: none there.
    """
    if path.is_file() and path.name != "last.ckpt":
        return read(path)
    folder = path.parent if path.name == "last.ckpt" else path
    found = newest(folder, warn)
    if found is None:
        raise CheckpointError(f"{path}: no checkpoint there; train the site before, or set checkpoint.load to null")
    return found


def collect(strategy: Strategy, device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Everything that training needs to go on: JSON part and tensors."""
    tensors = {
        f"network/{name}/{key}": value
        for name, network in strategy.networks.items()
        for key, value in network.state_dict().items()
    }
    optimizers: dict[str, Any] = {}
    for name, updater in strategy.updaters.items():
        state = updater.optimizer.state_dict()
        for index, entries in state["state"].items():
            tensors |= {f"optimizer/{name}/{index}/{key}": value for key, value in entries.items()}
        groups = [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]]
        optimizers[name] = {"groups": groups, "scaler": updater.scaler.state_dict(), "bad_steps": updater.bad_steps}
        for i, parameter in enumerate(updater.parameters):
            if updater.pending and parameter.grad is not None:
                tensors[f"gradient/{name}/{i}"] = parameter.grad
        optimizers[name]["pending"] = updater.pending
    tensors["rng/cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
    return {"state": strategy.state(), "optimizers": optimizers}, tensors


def load_networks(strategy: Strategy, checkpoint: Checkpoint, names: list[str]) -> None:
    """Load networks by name.

    Raises:
        CheckpointError: a network is missing or has other shapes.
    """
    for name in names:
        try:
            strategy.networks[name].load_state_dict(checkpoint.network(name))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{checkpoint.path}: network {name!r} does not fit this run's model: {reason}") from None


def _laid_out_like(value: Tensor, like: Tensor) -> Tensor:
    """`value` in the memory layout of its parameter (channels-last or not): fused optimizers walk over raw memory."""
    if value.shape != like.shape:
        return value
    return torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)


def restore(strategy: Strategy, checkpoint: Checkpoint, device: torch.device) -> None:
    """Put a strategy where `collect` found it.

    Raises:
        CheckpointError: made by another strategy or for other networks.
    """
    strategy.load_state(checkpoint.meta["state"])
    load_networks(strategy, checkpoint, list(strategy.networks))
    for name, updater in strategy.updaters.items():
        saved = checkpoint.meta["optimizers"][name]
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in checkpoint.tensors.items():
            kind, owner, *rest = key.split("/")
            if kind == "optimizer" and owner == name:
                like = updater.parameters[int(rest[0])]
                entries.setdefault(int(rest[0]), {})[rest[1]] = _laid_out_like(value, like)
            elif kind == "gradient" and owner == name:
                like = updater.parameters[int(rest[0])]
                like.grad = _laid_out_like(value, like)
        layout = updater.optimizer.state_dict()["param_groups"]
        groups = [{**group, "params": old["params"]} for group, old in zip(saved["groups"], layout, strict=True)]
        updater.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        updater.scaler.load_state_dict(saved["scaler"])
        updater.bad_steps, updater.pending = int(saved["bad_steps"]), int(saved["pending"])
    torch.set_rng_state(checkpoint.tensors["rng/cpu"])
    if device.type == "cuda" and "rng/cuda" in checkpoint.tensors:
        torch.cuda.set_rng_state(checkpoint.tensors["rng/cuda"], device)
