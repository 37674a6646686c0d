"""Read and write checkpoints: each is one safetensors file, with everything that is not a tensor as JSON in its header.

Tensors are named `network/<name>/<key>`, `optimizer/<name>/<parameter>/<key>`, `gradient/<name>/<parameter>` and
`rng/<device>`. The header's `digest` is the SHA-256 over the tensors and the JSON, so that a flipped byte is noticed before
anything is loaded.
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
SECRET = "privacy/secret"
"""Name of the tensor of what the randomness of a private training follows from."""
_NAME = re.compile(r"step-(\d{8})\.safetensors$")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose digest has been verified."""

    path: Path
    digest: str
    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    def network(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one network, by the keys of its state.

        Raises:
            CheckpointError: the checkpoint holds no network of this name.
        """
        prefix = f"network/{name}/"
        state = {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}
        if not state:
            raise CheckpointError(f"{self.path}: holds no network {name!r}; it has {', '.join(self.networks)}")
        return state

    @property
    def networks(self) -> list[str]:
        """Names of the networks that the checkpoint holds."""
        return list(dict.fromkeys(key.split("/")[1] for key in self.tensors if key.startswith("network/")))


def content_digest(meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hexadecimal) over the canonical JSON and, by name, each tensor's type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def write(folder: Path, step: int, meta: dict[str, Any], tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Write `step-<step>.safetensors` atomically, then `tidy` the folder.

    Raises:
        CheckpointError: the disk is full or not writable; the earlier checkpoints are still there.
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
    """Remove all but the last `KEEP` checkpoints of a folder, and the files that a killed process left half-written."""
    for obsolete in (*sorted(_checkpoint_files(folder), key=_step_of)[:-KEEP], *folder.glob(".writing-*")):
        obsolete.unlink()


def _checkpoint_files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*.safetensors") if _NAME.search(path.name)]


def _step_of(path: Path) -> int:
    match = _NAME.search(path.name)
    return int(match.group(1)) if match else -1


def read(path: Path) -> Checkpoint:
    """Read a checkpoint and verify its digest.

    Raises:
        CheckpointError: there is no such file, or it is not a checkpoint of relay, is damaged, or has a newer format.
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
        digest, version = header["digest"], int(meta["format"])
    except (KeyError, ValueError, TypeError):
        raise CheckpointError(f"{path}: damaged or not a checkpoint of relay (its header is not readable)") from None
    if version > FORMAT:
        raise CheckpointError(f"{path}: written by a newer version of relay (format {version}); update to read it")
    if content_digest(meta, tensors) != digest:
        raise CheckpointError(f"{path}: damaged: its content does not match its digest; use an older checkpoint")
    return Checkpoint(path, digest, meta, tensors)


def newest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest undamaged checkpoint of a folder, or None in a folder without any.

    Damaged ones are skipped, and `warn` is told of each.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    files = sorted(_checkpoint_files(folder), key=_step_of, reverse=True)
    for path in files:
        try:
            return read(path)
        except CheckpointError as error:
            warn(f"skipped: {error}")
    if files:
        raise CheckpointError(f"{folder}: all {len(files)} checkpoints are damaged; start this site anew")
    return None


def find(path: Path, warn: Callable[[str], None]) -> Checkpoint:
    """Return the checkpoint at a path: its file, its site's folder, or the published code's `<folder>/last.ckpt`.

    Raises:
        CheckpointError: there is no checkpoint, or none that can be read.
    """
    if path.is_file() and path.name != "last.ckpt":
        return read(path)
    folder = path.parent if path.name == "last.ckpt" else path
    checkpoint = newest(folder, warn)
    if checkpoint is None:
        raise CheckpointError(f"{path}: no checkpoint there; train the site before, or set checkpoint.load to null")
    return checkpoint


def collect(strategy: Strategy, device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Collect everything that a training needs to go on: the JSON part and the tensors of a checkpoint."""
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
    if strategy.privacy is not None:
        tensors[SECRET] = torch.frombuffer(bytearray(strategy.privacy.secret), dtype=torch.uint8)
    tensors["rng/cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
    return {"state": strategy.state(), "optimizers": optimizers}, tensors


def load_networks(strategy: Strategy, checkpoint: Checkpoint, names: list[str]) -> None:
    """Load the networks of the given names from a checkpoint into a strategy.

    Raises:
        CheckpointError: the checkpoint lacks a network, or its tensors have other shapes.
    """
    for name in names:
        try:
            strategy.networks[name].load_state_dict(checkpoint.network(name))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{checkpoint.path}: network {name!r} does not fit this run's model: {reason}") from None


def load_handed_over(strategy: Strategy, checkpoint: Checkpoint) -> list[str]:
    """Load what a checkpoint hands over, and no frozen copies; return the names of the networks, without those it may lack.

    Raises:
        CheckpointError: as `load_networks`.
    """
    state = checkpoint.meta["state"]
    strategy.load_state({**state, "frozen": []} if "frozen" in state else state)
    lacking = strategy.missing_from(checkpoint.networks)
    names = [name for name in strategy.hand_over() if name not in lacking]
    load_networks(strategy, checkpoint, names)
    return names


def _laid_out_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return `value` in the memory layout of its parameter (channels-last or not).

    Fused optimizers walk over raw memory. A value of another shape than its parameter's is returned as it is.
    """
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def restore(strategy: Strategy, checkpoint: Checkpoint, device: torch.device) -> None:
    """Put a strategy, its optimizers and the random state where `collect` found them.

    Raises:
        CheckpointError: the checkpoint was made by another strategy or for other networks.
    """
    strategy.load_state(checkpoint.meta["state"])
    load_networks(strategy, checkpoint, list(strategy.networks))
    for name, updater in strategy.updaters.items():
        saved = checkpoint.meta["optimizers"][name]
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in checkpoint.tensors.items():
            kind, owner, *rest = key.split("/")
            if kind == "optimizer" and owner == name:
                parameter = updater.parameters[int(rest[0])]
                entries.setdefault(int(rest[0]), {})[rest[1]] = _laid_out_like(value, parameter)
            elif kind == "gradient" and owner == name:
                parameter = updater.parameters[int(rest[0])]
                parameter.grad = _laid_out_like(value, parameter)
        layout = updater.optimizer.state_dict()["param_groups"]
        groups = [{**group, "params": current["params"]} for group, current in zip(saved["groups"], layout, strict=True)]
        updater.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        updater.scaler.load_state_dict(saved["scaler"])
        updater.bad_steps, updater.pending = int(saved["bad_steps"]), int(saved["pending"])
    if strategy.privacy is not None:
        secret = checkpoint.tensors.get(SECRET)
        strategy.privacy.restore(checkpoint.meta["privacy"], None if secret is None else secret.numpy().tobytes())
    torch.set_rng_state(checkpoint.tensors["rng/cpu"])
    if device.type == "cuda" and "rng/cuda" in checkpoint.tensors:
        torch.cuda.set_rng_state(checkpoint.tensors["rng/cuda"], device)
