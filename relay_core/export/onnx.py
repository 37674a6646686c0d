"""Make an ONNX model of a checkpoint's solver, and prove that it gives what the solver gives.

A model that fails the proof is not written. float32 must agree with torch to `TOLERANCE` on the logits of several shapes and
batches, and choose the same classes on every test image that is at hand; where two classes are as good as equal (logits
within twice the tolerance) either is right. Half precision and int8 cannot: they must keep the Dice, a classifier the
accuracy, to `LOSS`.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import Dim

from relay_core.config import SiteSettings
from relay_core.data import SiteData
from relay_core.engine import BATCH, Checkpoint, load_solver
from relay_core.errors import ExportError
from relay_core.inference import ANSWER, INPUT, KEY, OUTPUTS, SCORE, ModelFacts, OnnxModel, Precision, ServedSolver
from relay_core.metrics import ClassificationScores, SegmentationScores, metrics_of

OPSET = 20
TOLERANCE = 1e-4
"""Largest difference of a float32 logit to torch's."""
LOSS = 0.01
"""Dice per sample, or accuracy, that half precision or int8 may lose on a test set."""
CALIBRATION = 64
"""Training images that int8's ranges are measured on."""


@dataclass
class Proof:
    """What was measured of an exported model; plain data."""

    precision: Precision
    bytes: int
    opset: int = OPSET
    parity: list[dict[str, Any]] = field(default_factory=list)
    """{shape, max_abs_difference} of the logits to torch's, for random images."""
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Test site -> {images, pixels, differ, ties, dice, dice_torch}; Dice is per sample. Of a classifier
    {images, differ, ties, accuracy, accuracy_torch}."""


def export(
    checkpoint: Checkpoint, tests: Mapping[str, SiteData], precision: Precision = "fp32", calibration: SiteData | None = None
) -> tuple[bytes, Proof]:
    """The model file and its proof.

    Args:
        checkpoint: verified.
        tests: test sets by site, at least one.
        precision: fp32, fp16 or int8.
        calibration: training images, for int8.

    Raises:
        ExportError: the model does not give what the solver gives, or there is nothing to prove it with.
        CheckpointError: the checkpoint does not fit its settings.
    """
    if not tests:
        raise ExportError("there are no test images to prove the exported model with; give --data-root")
    cpu = torch.device("cpu")
    solver, settings = load_solver(checkpoint, cpu)
    reference = ServedSolver.of(solver, settings)
    exported = reference
    if precision == "fp16":
        exported = ServedSolver.of(load_solver(checkpoint, cpu)[0], settings, half=True)
    model = _to_onnx(exported, settings)
    if precision == "int8":
        if calibration is None:
            raise ExportError("int8 needs training images to measure its ranges on; give --data-root")
        model = _quantised(model, calibration)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, _facts(checkpoint, settings, tests, precision).to_json()
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's errors have no common base
        raise ExportError(f"the exported model is not valid ONNX: {error}") from None
    content = model.SerializeToString()
    return content, prove(content, reference, settings, tests, precision)


def _to_onnx(network: ServedSolver, settings: SiteSettings) -> onnx.ModelProto:
    side = settings.resolution
    example = torch.rand(2, settings.data.img_channels, side + 6, side + 26)
    shapes = {"image": {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")}}
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it names every optional package that is not there
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network, (example,), None, dynamo=True, dynamic_shapes=shapes, input_names=[INPUT],
                output_names=list(OUTPUTS[network.task]), opset_version=OPSET, external_data=False, verbose=False,
            )  # fmt: skip
    finally:
        log.setLevel(level)
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def _facts(
    checkpoint: Checkpoint, settings: SiteSettings, tests: Mapping[str, SiteData], precision: Precision
) -> ModelFacts:
    meta = checkpoint.meta
    sites = meta.get("sites") or [str(meta["site"])]
    known = [mm for data in tests.values() for mm in data.spacing if mm is not None]
    return ModelFacts(
        classes=tuple(settings.data.names()), channels=settings.data.img_channels, resolution=settings.resolution,
        input_range=(0.0, 1.0), spacing_mm=known[0] if known else None, precision=precision, run=str(meta["run"]),
        checkpoint=checkpoint.digest, sites=tuple(sites), looks=meta.get("looks", {}), task=settings.data.task,
        window=settings.data.value_window,
    )  # fmt: skip


class _Reader:
    """Calibration images, one batch a call, as ONNX Runtime's quantiser wants them."""

    def __init__(self, data: SiteData) -> None:
        step = max(1, len(data) // CALIBRATION)
        self._chosen: Iterator[int] = iter(range(0, len(data), step)[:CALIBRATION])
        self._data = data

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, or None."""
        position = next(self._chosen, None)
        if position is None:
            return None
        return {INPUT: self._data.unit_batch([position])[0].numpy()}


def _quantised(model: onnx.ModelProto, calibration: SiteData) -> onnx.ModelProto:
    """Convolutions in int8, weights by channel (ONNX Runtime's static quantisation, QDQ)."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    before = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="relay-") as folder:
            plain, ready, made = (str(Path(folder) / name) for name in ("plain.onnx", "ready.onnx", "int8.onnx"))
            onnx.save(model, plain)
            quant_pre_process(plain, ready, skip_symbolic_shape=True)
            quantize_static(
                ready, made, _Reader(calibration), quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv"],
                per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
            return onnx.load(made)
    finally:
        logging.root.setLevel(before)


def prove(
    content: bytes, reference: ServedSolver, settings: SiteSettings, tests: Mapping[str, SiteData], precision: Precision
) -> Proof:
    """Compare a model file with the network that it was made from, on the CPU.

    Raises:
        ExportError: they do not agree.
    """
    session, proof = OnnxModel(content, "cpu"), Proof(precision, len(content))
    random = np.random.default_rng(0)
    side = settings.resolution
    shapes = ((1, side, side), (3, 2 * side, side + 7), (2, side // 2 + 1, side + 1), (4, 3 * side + 5, side))
    for count, height, width in shapes:
        images = random.random((count, settings.data.img_channels, height, width), dtype=np.float32)
        wanted, given = _logits(reference, images), session(images, ("logits",))[0]
        worst = float(np.abs(wanted - given).max()) if np.isfinite(given).all() else float("inf")
        proof.parity.append({"shape": list(images.shape), "max_abs_difference": worst})
        if not worst <= (TOLERANCE if precision == "fp32" else 1e3):
            raise ExportError(f"the exported model's logits are off by {worst:.2e} at {images.shape}; at most {TOLERANCE:g}")
    score, of = SCORE[reference.task], "pixels of" if reference.task == "segmentation" else "of"
    for name, data in tests.items():
        proof.tests[name] = found = _on_images(session, reference, data)
        if precision == "fp32" and found["differ"]:
            raise ExportError(f"the exported model chooses other classes on {found['differ']} {of} {name}'s test images")
        lost = found[f"{score}_torch"] - found[score]
        if lost > LOSS:
            raise ExportError(f"{precision} loses {lost:.3f} {score} on {name}'s test images; at most {LOSS:g} is let pass")
    return proof


@torch.no_grad()
def _logits(network: ServedSolver, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = network(torch.from_numpy(images))[0].numpy()
    return found


@torch.no_grad()
def _on_images(session: OnnxModel, reference: ServedSolver, data: SiteData) -> dict[str, Any]:
    """Classes and their score on a test set, side by side."""
    kind = SegmentationScores if data.task == "segmentation" else ClassificationScores
    theirs, ours = kind(data.num_classes), kind(data.num_classes)
    differ = ties = seen = 0
    for start in range(0, len(data), BATCH):
        index = range(start, min(start + BATCH, len(data)))
        images, labels = data.unit_batch(index)
        logits, _, _, wanted, _ = reference(images)
        found = torch.from_numpy(session(images.numpy(), (ANSWER[data.task],))[0])
        other = found != wanted
        best = logits.topk(2, dim=1).values
        tie = other & (best[:, 0] - best[:, 1] <= 2 * TOLERANCE)
        differ, ties, seen = differ + int((other & ~tie).sum()), ties + int(tie.sum()), seen + other.numel()
        _count(theirs, wanted, labels, data, index)
        _count(ours, found, labels, data, index)
    score, metric = SCORE[data.task], metrics_of(data.task)[0].name
    counts = {"images": len(data), **({"pixels": seen} if data.task == "segmentation" else {}), "differ": differ}
    ours_is, theirs_is = (round(scores.compute()[metric], 6) for scores in (ours, theirs))
    return {**counts, "ties": ties, score: ours_is, f"{score}_torch": theirs_is}


def _count(
    scores: SegmentationScores | ClassificationScores, found: Tensor, labels: Tensor, data: SiteData, index: range
) -> None:
    subjects = [data.subjects[i] for i in index]
    if isinstance(scores, SegmentationScores):
        scores.update(found, labels, subjects, [data.spacing[i] for i in index])
    else:  # the class is what is scored: it counts as certain
        scores.update(F.one_hot(found.long(), data.num_classes).float(), labels, subjects)
