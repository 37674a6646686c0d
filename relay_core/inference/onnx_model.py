"""Run an exported model with ONNX Runtime. Loads no torch.

An ONNX file is code as much as data: only files that this site exported itself, from weights that were verified, belong
here; a file that somebody carried in never does.
"""

from __future__ import annotations

import ctypes
import functools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from relay_core.config import Task
from relay_core.errors import DeviceError, ExportError
from relay_core.inference.outputs import OUTPUTS

KEY = "relay"
"""Metadata of the model that holds `Facts` as JSON."""
FORMAT = 1
INPUT = "image"
Precision = Literal["fp32", "fp16", "int8"]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ModelFacts:
    """What a model says of itself."""

    classes: tuple[str, ...]
    """Names, by id; of a segmentation the background first."""
    channels: int
    """1 grey, 3 colour."""
    resolution: int
    """Side in pixels that the network resizes to by itself."""
    input_range: tuple[float, float]
    """Black and white, as a caller gives them."""
    spacing_mm: tuple[float, float] | None
    """Of the test images at the network's resolution, row then column; None where they do not tell."""
    precision: Precision
    run: str
    """Digest of the relay's run file."""
    checkpoint: str
    """Content digest of the checkpoint."""
    sites: tuple[str, ...]
    """That it was trained at, in order."""
    looks: dict[str, Any]
    """Site -> what its training images look like, see `imaging.outlier`."""
    task: Task = "segmentation"
    """What it was trained for; a model without it was exported before there were classifiers."""
    window: tuple[float, float] | None = None
    """Measured values (HU) that were black and white in training; None: it learned from shades."""

    def to_json(self) -> str:
        """For the model's metadata."""
        return json.dumps({"format": FORMAT, **self.__dict__}, sort_keys=True)

    @classmethod
    def of(cls, text: str) -> ModelFacts:
        """Read `to_json`. Raises ExportError."""
        try:
            found = json.loads(text)
            if found.pop("format") != FORMAT or found.get("task", "segmentation") not in OUTPUTS:
                raise ValueError
            lists = {key: tuple(found[key]) for key in ("classes", "input_range", "sites")}
            pairs = {key: tuple(found[key]) if found.get(key) else None for key in ("spacing_mm", "window")}
            return cls(**{**found, **lists, **pairs})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ExportError("the ONNX file is none that this version of relay exported") from None


def providers(device: str) -> list[Any]:
    """What ONNX Runtime is asked for on a device: auto, cpu, cuda or cuda:N. Raises DeviceError for another name."""
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not number.isdigit()):
        raise DeviceError(f"device {device}: one of auto, cpu, cuda, cuda:N")
    if kind == "cpu" or "CUDAExecutionProvider" not in ort.get_available_providers() or not _has_driver():
        return ["CPUExecutionProvider"]
    _preload()
    return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]


@functools.cache
def _has_driver() -> bool:
    """Whether NVIDIA's driver is there: ONNX Runtime names the provider wherever it was built in."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@functools.cache
def _preload() -> None:
    if hasattr(ort, "preload_dlls"):  # CUDA and cuDNN from their wheels
        ort.preload_dlls()


class OnnxModel:
    """One model in memory. Any thread may call it.

    Args:
        content: the ONNX file.
        device: auto, cpu, cuda or cuda:N; without a GPU it runs on the CPU, and `degraded` says so where one was asked for.
        threads: of one call on a CPU; 0: one a core.

    Raises:
        ExportError: not an ONNX file that relay exported.
        DeviceError: another device's name.
    """

    def __init__(self, content: bytes, device: str = "auto", threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # what a large image took is given back
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other processes need the cores too
        wanted = providers(device)
        try:
            self._session = ort.InferenceSession(content, options, providers=wanted)
        except Exception:  # ONNX Runtime's errors have no common base, and quote the model
            raise ExportError("the ONNX file cannot be loaded") from None
        self.facts = ModelFacts.of(self._session.get_modelmeta().custom_metadata_map.get(KEY, ""))
        self.provider: str = self._session.get_providers()[0]
        self.degraded = device.startswith("cuda") and self.provider != "CUDAExecutionProvider"
        self.size = len(content)

    def __call__(self, images: Array, outputs: Sequence[str] | None = None) -> list[Array]:
        """Run a batch.

        Args:
            images: (N, C, H, W) float32 in 0..1.
            outputs: which of its task's `OUTPUTS`: logits, probabilities (N, K, H, W), confidence, mask (N, H, W); of a
                classifier logits, probabilities (N, K), confidence, class (N,); looks (N, 2 C + 1). None: all.
        """
        wanted = list(OUTPUTS[self.facts.task] if outputs is None else outputs)
        found: list[Array] = self._session.run(wanted, {INPUT: np.ascontiguousarray(images, np.float32)})
        return found

    def warm_up(self) -> float:
        """Run it once, so that the first caller does not wait; return the seconds that it took."""
        began = time.perf_counter()
        side = self.facts.resolution
        self(np.zeros((1, self.facts.channels, side, side), np.float32), ("confidence",))
        return time.perf_counter() - began
