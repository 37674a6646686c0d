"""Read and write the Open Inference Protocol, version 2, over HTTP: tensors are JSON numbers, or bytes behind the JSON.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol, binary tensor data extension included.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from relay_core.config import Task
from relay_core.inference import OUTPUTS, shapes
from services.site import Refusal

LENGTH = "Inference-Header-Content-Length"
"""The header that says how many bytes the JSON part of a body has."""
ENCODINGS = ("gzip", "deflate")
"""The Content-Encodings of bodies that are read."""
TYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
OUTPUT_TYPES = {
    "logits": "FP32", "probabilities": "FP32", "confidence": "FP32", "mask": "UINT8", "class": "UINT8", "looks": "FP32",
}  # fmt: skip
"""The datatype of every output that models can have; `relay_core.inference.outputs` says which model has which."""
MAX_SIDE = 1 << 14
"""The most pixels along a side of an image; the memory for resizing grows with it."""
MAX_JSON = 1 << 24
"""The most bytes of a request's JSON part; its numbers take many times as much memory."""
MAX_OUTPUT = 1 << 28
"""The most bytes of an answer."""
_RANGE = 1e-3
"""By how much an image's values may leave the range 0 to 1."""


def invalid(message: str) -> Refusal:
    """Return the refusal of a request that cannot be carried out: `inference_invalid`."""
    return Refusal("inference_invalid", message)


@dataclass(frozen=True)
class InferenceRequest:
    """Holds an inference request that was read and checked."""

    id: str | None
    images: npt.NDArray[np.float32]
    """Holds the images as (N, C, H, W), values 0 to 1."""
    outputs: dict[str, bool]
    """Maps the name of each output that is asked for to whether it is sent as bytes instead of JSON."""


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """Return a body without its Content-Encoding.

    Args:
        body: the body as it came.
        encoding: its Content-Encoding: gzip, deflate, identity, or empty.
        limit: the most bytes that it may have decompressed.

    Raises:
        Refusal: `unsupported_media_type` for another encoding; `bad_request` for a body that is not in this encoding;
            `too_large`.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ENCODINGS:
        raise Refusal("unsupported_media_type", "Content-Encoding: gzip or deflate")
    try:
        reader = zlib.decompressobj(31 if encoding == "gzip" else 15)
        plain = reader.decompress(body, limit + 1)
    except zlib.error:
        raise Refusal("bad_request", f"the body is not {encoding}") from None
    if len(plain) > limit:
        raise Refusal("too_large", f"the body has more than {limit} bytes, decompressed")
    if not reader.eof:
        raise Refusal("bad_request", f"the body's {encoding} is truncated")
    return plain


def compress(body: bytes, accepted: str) -> tuple[bytes, str | None]:
    """Return an answer and its Content-Encoding; None: it is plain.

    It is compressed only for a client that accepts gzip, or deflate, alone; one that lists several gets it plain, sooner.
    """
    match accepted.strip().lower():
        case "gzip":
            return gzip.compress(body, 1), "gzip"
        case "deflate":
            return zlib.compress(body, 1), "deflate"
    return body, None


def parse(
    body: bytes, length: str | None, task: Task, channels: int, classes: int, most_pixels: int, most_images: int
) -> InferenceRequest:
    """Read an inference request and check it.

    Args:
        body: the request's body, decompressed.
        length: the header `Inference-Header-Content-Length`: bytes of the JSON part; None: all of it is JSON.
        task: the task that the model was trained for.
        channels: the number of channels of the model's input.
        classes: the number of classes of the model's outputs.
        most_pixels: the most pixels, N x H x W, that one request may have.
        most_images: the most images that one request may have, however small: the network enlarges them.

    Raises:
        Refusal: `inference_invalid`, naming the key; `too_large` for more JSON, or a larger answer, than is worked on.
    """
    length_ok = length is None or (length.isascii() and length.isdigit() and len(length) < 16 and int(length) <= len(body))
    if not length_ok:
        raise invalid(f"{LENGTH}: not a number of bytes that the body has")
    split = len(body) if length is None else int(length)
    if split > MAX_JSON:
        raise Refusal("too_large", f"the JSON part has {split} bytes, at most {MAX_JSON}; send the tensor as bytes")
    try:
        head = json.loads(body[:split])
    except (ValueError, RecursionError):
        raise invalid(f"the request is not JSON; with binary tensors, {LENGTH} says where the JSON ends") from None
    if not isinstance(head, dict):
        raise invalid("the request is not a JSON object")
    inputs = head.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise invalid("inputs: give one, named image")
    images = _image(inputs[0], body[split:], channels, most_pixels, most_images)
    request_id = head.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise invalid("id: a string")
    outputs, output_shapes = _outputs(head, OUTPUTS[task]), shapes(task, channels, classes)
    total = sum(_bytes(name, output_shapes[name], images.shape) * (1 if binary else 8) for name, binary in outputs.items())
    if total > MAX_OUTPUT:
        raise Refusal(
            "too_large", f"the answer would have more than {MAX_OUTPUT} bytes; ask for fewer outputs, or for bytes"
        )
    return InferenceRequest(request_id, images, outputs)


def _bytes(name: str, shape: Sequence[int], images: Sequence[int]) -> int:
    """Return the bytes that an output has.

    Args:
        name: the output's name.
        shape: the output's shape; -1 stands in turn for N, H and W of the images.
        images: the images' shape (N, C, H, W).
    """
    free = iter((images[0], *images[2:]))
    return TYPES[OUTPUT_TYPES[name]].itemsize * math.prod(next(free) if n < 0 else n for n in shape)


def _image(
    tensor: Mapping[str, Any], raw: bytes, channels: int, most_pixels: int, most_images: int
) -> npt.NDArray[np.float32]:
    if tensor.get("name") != "image":
        raise invalid(f"inputs: there is no input {str(tensor.get('name'))[:50]!r}; the model's is image")
    if tensor.get("datatype") != "FP32":
        raise invalid(f"image: datatype {str(tensor.get('datatype'))[:20]!r}; the model takes FP32, values 0 to 1")
    shape: Any = tensor.get("shape")
    _check_shape(shape, channels, most_pixels, most_images)
    parameters = tensor.get("parameters") or {}
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    count = math.prod(shape)
    if size is not None:
        if size != count * 4 or len(raw) != size:
            raise invalid(f"image: shape {shape} needs {count * 4} bytes; {size} are announced, {len(raw)} came")
        values = np.frombuffer(raw, TYPES["FP32"]).reshape(shape)
    else:
        if raw:
            raise invalid("image: bytes follow the JSON, but its parameters have no binary_data_size")
        values = _from_json(tensor.get("data"), count).reshape(shape)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise invalid("image: has values that are not finite numbers (NaN or infinity)")
    if low < -_RANGE or high > 1 + _RANGE:
        raise invalid(f"image: values from {low:g} to {high:g}; black is 0 and white is 1")
    return values


def _check_shape(shape: Any, channels: int, most_pixels: int, most_images: int) -> None:
    """Raise Refusal `inference_invalid` for a shape that the model does not take, or that asks too much."""
    if not isinstance(shape, list) or not all(type(n) is int and n >= 1 for n in shape):
        raise invalid("image: shape must be a list of positive whole numbers")
    if len(shape) != 4 or shape[1] != channels:
        raise invalid(f"image: shape {shape[:6]}; the model takes [images, {channels}, height, width]")
    if max(shape[2:]) > MAX_SIDE:
        raise invalid(f"image: {shape[2]} x {shape[3]} pixels; a side may have {MAX_SIDE}")
    if shape[0] * shape[2] * shape[3] > most_pixels:
        raise invalid(f"image: {shape[0]} x {shape[2]} x {shape[3]} pixels; one request may have {most_pixels}")
    if shape[0] > most_images:
        raise invalid(f"image: {shape[0]} images; one request to this model may have {most_images}: send several")


def _from_json(data: Any, count: int) -> npt.NDArray[np.float32]:
    """Return the `count` numbers of a flat or nested list as a flat array. Raises Refusal `inference_invalid`."""
    try:
        values = np.asarray(data, dtype=np.float64).ravel() if isinstance(data, list) else None
    except (ValueError, TypeError, OverflowError, RecursionError):
        values = None
    if values is None:
        raise invalid("image: data must be a list of numbers, flat or nested as the shape says")
    if len(values) != count:
        raise invalid(f"image: the shape has {count} values, data has {len(values)}")
    return values.astype(np.float32)


def _outputs(head: Mapping[str, Any], available: Sequence[str]) -> dict[str, bool]:
    binary = _flag(head.get("parameters"), "binary_data_output", False)
    wanted = head.get("outputs")
    if wanted is None or wanted == []:
        return dict.fromkeys(available, binary)
    if not isinstance(wanted, list) or not all(isinstance(entry, dict) for entry in wanted):
        raise invalid("outputs: a list of objects, each with the name of an output")
    outputs = {}
    for entry in wanted:
        name, parameters = entry.get("name"), entry.get("parameters")
        if not isinstance(name, str) or name not in available:
            raise invalid(f"outputs: there is no output {str(name)[:50]!r}; the model's are {', '.join(available)}")
        if isinstance(parameters, dict) and parameters.get("classification"):
            raise invalid("outputs: classification is not offered; take probabilities")
        outputs[name] = _flag(parameters, "binary_data", binary)
    return outputs


def _flag(parameters: Any, name: str, default: bool) -> bool:
    value = parameters.get(name, default) if isinstance(parameters, dict) else default
    if not isinstance(value, bool):
        raise invalid(f"parameters: {name} is true or false")
    return value


def answer(
    name: str, version: int, asked: InferenceRequest, results: Mapping[str, npt.NDArray[Any]]
) -> tuple[bytes, int | None]:
    """Return the answer's body, and how many bytes its JSON part has; None: no tensor follows as bytes.

    Raises:
        Refusal: `model_unavailable` for outputs that are not finite and asked for as JSON, which has no such numbers.
    """
    tensors, parts = [], []
    for key, binary in asked.outputs.items():
        values, datatype = results[key], OUTPUT_TYPES[key]
        tensor: dict[str, Any] = {"name": key, "datatype": datatype, "shape": list(values.shape)}
        if binary:
            raw = np.ascontiguousarray(values, TYPES[datatype]).tobytes()
            tensor["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            tensor["data"] = values.ravel().tolist()
        tensors.append(tensor)
    head: dict[str, Any] = {"model_name": name, "model_version": str(version), "outputs": tensors}
    if asked.id is not None:
        head["id"] = asked.id
    try:
        text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:
        raise Refusal("model_unavailable", "the model's outputs are not finite numbers: take another precision") from None
    return b"".join([text, *parts]), len(text) if parts else None


def metadata(name: str, versions: Sequence[int], task: Task, channels: int, classes: int) -> dict[str, Any]:
    """Return a model's metadata as the protocol has it: its versions, inputs and outputs."""
    output_shapes = shapes(task, channels, classes)
    return {
        "name": name,
        "versions": [str(number) for number in versions],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, channels, -1, -1]}],
        "outputs": [{"name": key, "datatype": OUTPUT_TYPES[key], "shape": shape} for key, shape in output_shapes.items()],
    }
