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
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from relay_core.config import Fit, Task
from relay_core.errors import DeviceError, ExportError
from relay_core.inference.outputs import OUTPUTS

KEY = "relay"
"""Key of the model's metadata that holds its `ModelFacts` as JSON."""
FORMAT = 1
"""Version of that JSON."""
INPUT = "image"
Precision = Literal["fp32", "fp16", "int8"]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ModelFacts:
    """The facts about a model that its metadata holds."""

    classes: tuple[str, ...]
    """Names of the classes, by id; of a segmentation the background first."""
    channels: int
    """Number of channels of an image: 1 is grey, 3 is colour."""
    resolution: int
    """Side in pixels that the network itself resizes images to."""
    input_range: tuple[float, float]
    """Values of black and white in the images that a caller gives."""
    spacing_mm: tuple[float, float] | None
    """Mm of a pixel of the test images at the network's resolution, row then column; None where they do not tell."""
    precision: Precision
    run: str
    """Digest of the relay's run file."""
    checkpoint: str
    """Content digest of the checkpoint."""
    sites: tuple[str, ...]
    """Sites that the model was trained at, in order."""
    looks: dict[str, Any]
    """Feature statistics of the training images by site, see `imaging.out_of_distribution`."""
    task: Task = "segmentation"
    """Task that it was trained for; models that were exported before there were classifiers do not state it."""
    window: tuple[float, float] | None = None
    """Measured values (HU) that were black and white in training; None: it learned from grey values without unit."""
    fit: Fit = "stretch"
    """How an image that is not square becomes one; models of before there was a choice stretch it, and do not state it."""

    def to_json(self) -> str:
        """Encode the facts for the model's metadata."""
        return json.dumps({"format": FORMAT, **self.__dict__}, sort_keys=True)

    @classmethod
    def of(cls, text: str) -> ModelFacts:
        """Decode facts that `to_json` encoded. Raises ExportError for any other text."""
        try:
            fields = json.loads(text)
            known = fields.get("task", "segmentation") in OUTPUTS and fields.get("fit", "stretch") in get_args(Fit)
            if fields.pop("format") != FORMAT or not known:
                raise ValueError
            lists = {key: tuple(fields[key]) for key in ("classes", "input_range", "sites")}
            pairs = {key: tuple(fields[key]) if fields.get(key) else None for key in ("spacing_mm", "window")}
            return cls(**{**fields, **lists, **pairs})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ExportError("the ONNX file is none that this version of relay exported") from None


def providers(device: str) -> list[Any]:
    """Return the ONNX Runtime providers for a device: auto, cpu, cuda or cuda:N. Raises DeviceError for another name."""
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not number.isdigit()):
        raise DeviceError(f"device {device}: one of auto, cpu, cuda, cuda:N")
    if kind == "cpu" or "CUDAExecutionProvider" not in ort.get_available_providers() or not _has_driver():
        return ["CPUExecutionProvider"]
    _preload_cuda()
    return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]


@functools.cache
def _has_driver() -> bool:
    """Whether NVIDIA's driver is there; ONNX Runtime lists the CUDA provider even without it."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@functools.cache
def _preload_cuda() -> None:
    if hasattr(ort, "preload_dlls"):  # CUDA and cuDNN from their wheels
        ort.preload_dlls()


class OnnxModel:
    """An exported model in memory. Any thread may call it.

    Args:
        content: bytes of the ONNX file.
        device: auto, cpu, cuda or cuda:N; without a GPU it runs on the CPU, and `degraded` says so where one was asked for.
        threads: number of threads of one call on a CPU; 0: one for each core.

    Raises:
        ExportError: the content is not an ONNX file that relay exported.
        DeviceError: `device` is another name.
    """

    def __init__(self, content: bytes, device: str = "auto", threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # what a large image took is given back
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other processes need the cores too
        requested = providers(device)
        try:
            self._session = ort.InferenceSession(content, options, providers=requested)
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
            outputs: names of outputs, of those in `OUTPUTS` for its task; None: all. A segmentation has logits and
                probabilities (N, K, H, W), confidence and mask (N, H, W); a classifier logits and probabilities (N, K),
                confidence and class (N,); both have looks (N, 2 C + 1), the images' features.
        """
        names = list(OUTPUTS[self.facts.task] if outputs is None else outputs)
        results: list[Array] = self._session.run(names, {INPUT: np.ascontiguousarray(images, np.float32)})
        return results

    def warm_up(self) -> float:
        """Run it once, so that the first caller does not wait; return the seconds that it took."""
        began = time.perf_counter()
        side = self.facts.resolution
        self(np.zeros((1, self.facts.channels, side, side), np.float32), ("confidence",))
        return time.perf_counter() - began
