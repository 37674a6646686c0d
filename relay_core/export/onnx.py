"""Make an ONNX model of a checkpoint's solver, and prove that it gives what the solver gives.

A model that fails the proof is not written. A float32 model's logits must agree with torch's to `TOLERANCE` for several
shapes and batches, and it must choose the same classes on every test image that is at hand; where two classes are as good as
equal (logits within twice the tolerance) either is right. Half precision and int8 cannot agree so closely: they may lose at
most `LOSS` of the Dice, or of a classifier's accuracy.
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
"""Largest allowed difference between a float32 logit and torch's."""
LOSS = 0.01
"""Most Dice per sample, or accuracy, that a model may lose on a test set."""
CALIBRATION = 64
"""Most training images that int8's ranges are measured on."""


@dataclass
class Proof:
    """The measurements that prove an exported model; plain data."""

    precision: Precision
    bytes: int
    opset: int = OPSET
    parity: list[dict[str, Any]] = field(default_factory=list)
    """{shape, max_abs_difference} for each batch of random images: how far the logits are from torch's."""
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Test site -> {images, pixels, differ, ties, dice, dice_torch}, for a classifier {images, differ, ties, accuracy,
    accuracy_torch}. Dice is per sample. Of the pixels (images) whose class is not torch's, `ties` counts those where two
    classes are as good as equal, `differ` the others."""


def export(
    checkpoint: Checkpoint, tests: Mapping[str, SiteData], precision: Precision = "fp32", calibration: SiteData | None = None
) -> tuple[bytes, Proof]:
    """Export a checkpoint's solver; return the model file and its proof.

    Args:
        checkpoint: the checkpoint, verified.
        tests: test sets by site, at least one.
        precision: fp32, fp16 or int8.
        calibration: training images to measure ranges on, which int8 needs.

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
        model = _quantise(model, calibration)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, _facts(checkpoint, settings, tests, precision).to_json()
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's errors have no common base
        raise ExportError(f"the exported model is not valid ONNX: {error}") from None
    content = model.SerializeToString()
    return content, prove(content, reference, settings, tests, precision)


def _to_onnx(network: ServedSolver, settings: SiteSettings) -> onnx.ModelProto:
    """Convert a network to ONNX; the number, height and width of the images stay open."""
    side = settings.resolution
    example = torch.rand(2, settings.data.img_channels, side + 6, side + 26)
    shapes = {"image": {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")}}
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it logs every optional package that is missing
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
    spacings = [mm for data in tests.values() for mm in data.spacing if mm is not None]
    return ModelFacts(
        classes=tuple(settings.data.names()), channels=settings.data.img_channels, resolution=settings.resolution,
        input_range=(0.0, 1.0), spacing_mm=spacings[0] if spacings else None, precision=precision, run=str(meta["run"]),
        checkpoint=checkpoint.digest, sites=tuple(sites), looks=meta.get("looks", {}), task=settings.data.task,
        window=settings.data.value_window, fit=settings.data.fit,
    )  # fmt: skip


class _Reader:
    """Give ONNX Runtime's quantiser calibration images, one for each call of `get_next`."""

    def __init__(self, data: SiteData) -> None:
        step = max(1, len(data) // CALIBRATION)
        self._chosen: Iterator[int] = iter(range(0, len(data), step)[:CALIBRATION])
        self._data = data

    def get_next(self) -> dict[str, Any] | None:
        """Return the model's input with the next image, a batch of one; None after the last."""
        position = next(self._chosen, None)
        if position is None:
            return None
        return {INPUT: self._data.unit_batch([position])[0].numpy()}


def _quantise(model: onnx.ModelProto, calibration: SiteData) -> onnx.ModelProto:
    """Quantise convolutions to int8, weights by channel (ONNX Runtime's static quantisation, QDQ)."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="relay-") as folder:
            plain, prepared, quantised = (str(Path(folder) / name) for name in ("plain.onnx", "ready.onnx", "int8.onnx"))
            onnx.save(model, plain)
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared, quantised, _Reader(calibration), quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv"],
                per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
            return onnx.load(quantised)
    finally:
        logging.root.setLevel(level)


def prove(
    content: bytes, reference: ServedSolver, settings: SiteSettings, tests: Mapping[str, SiteData], precision: Precision
) -> Proof:
    """Compare a model file with the network that it was made from, on the CPU.

    Raises:
        ExportError: the two do not agree.
    """
    session, proof = OnnxModel(content, "cpu"), Proof(precision, len(content))
    random = np.random.default_rng(0)
    side = settings.resolution
    shapes = ((1, side, side), (3, 2 * side, side + 7), (2, side // 2 + 1, side + 1), (4, 3 * side + 5, side))
    for count, height, width in shapes:
        images = random.random((count, settings.data.img_channels, height, width), dtype=np.float32)
        expected, logits = _logits(reference, images), session(images, ("logits",))[0]
        worst = float(np.abs(expected - logits).max()) if np.isfinite(logits).all() else float("inf")
        proof.parity.append({"shape": list(images.shape), "max_abs_difference": worst})
        if not worst <= (TOLERANCE if precision == "fp32" else 1e3):
            raise ExportError(f"the exported model's logits are off by {worst:.2e} at {images.shape}; at most {TOLERANCE:g}")
    score, unit = SCORE[reference.task], "pixels of" if reference.task == "segmentation" else "of"
    for name, data in tests.items():
        proof.tests[name] = result = _compare_on_images(session, reference, data)
        if precision == "fp32" and result["differ"]:
            raise ExportError(f"the exported model chooses other classes on {result['differ']} {unit} {name}'s test images")
        lost = result[f"{score}_torch"] - result[score]
        if lost > LOSS:
            title = metrics_of(reference.task)[0].short
            raise ExportError(f"{precision} loses {lost:.3f} {title} on {name}'s test images; at most {LOSS:g} is let pass")
    return proof


@torch.no_grad()
def _logits(network: ServedSolver, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    logits: np.ndarray[Any, Any] = network(torch.from_numpy(images))[0].numpy()
    return logits


@torch.no_grad()
def _compare_on_images(session: OnnxModel, reference: ServedSolver, data: SiteData) -> dict[str, Any]:
    """Compare a model's classes and score on a test set with those of the network; return an entry of `Proof.tests`."""
    torch_scores, model_scores = (
        SegmentationScores(data.num_classes, data.groups, data.merged)
        if data.task == "segmentation"
        else ClassificationScores(data.num_classes)
        for _ in range(2)
    )
    differ = ties = total = 0
    for start in range(0, len(data), BATCH):
        index = range(start, min(start + BATCH, len(data)))
        images, labels = data.unit_batch(index)
        logits, _, _, expected, _ = reference(images)
        classes = torch.from_numpy(session(images.numpy(), (ANSWER[data.task],))[0])
        different = classes != expected
        top_two = logits.topk(2, dim=1).values
        tie = different & (top_two[:, 0] - top_two[:, 1] <= 2 * TOLERANCE)
        differ, ties, total = differ + int((different & ~tie).sum()), ties + int(tie.sum()), total + different.numel()
        _update_scores(torch_scores, expected, labels, data, index)
        _update_scores(model_scores, classes, labels, data, index)
    score, metric = SCORE[data.task], metrics_of(data.task)[0].name
    counts = {"images": len(data), **({"pixels": total} if data.task == "segmentation" else {}), "differ": differ}
    model_score, torch_score = (round(scores.compute()[metric], 6) for scores in (model_scores, torch_scores))
    return {**counts, "ties": ties, score: model_score, f"{score}_torch": torch_score}


def _update_scores(
    scores: SegmentationScores | ClassificationScores, classes: Tensor, labels: Tensor, data: SiteData, index: range
) -> None:
    """Add the predicted classes of the samples `index` to the scores."""
    subjects = [data.subjects[i] for i in index]
    if isinstance(scores, SegmentationScores):
        scores.update(classes, labels, subjects, [data.spacing[i] for i in index])
    else:  # a classifier is scored by its class alone, as if it were certain
        scores.update(F.one_hot(classes.long(), data.num_classes).float(), labels, subjects)
