"""Name the outputs of a served model for each task, and their shapes. Imports neither torch nor ONNX Runtime."""

from __future__ import annotations

from relay_core.config import Task

ANSWER: dict[Task, str] = {"segmentation": "mask", "classification": "class"}
"""Name of the output that holds the predicted class of every pixel, or of the image."""
OUTPUTS: dict[Task, tuple[str, ...]] = {
    task: ("logits", "probabilities", "confidence", answer, "looks") for task, answer in ANSWER.items()
}
"""Names of all outputs, in the graph's order."""
SCORE: dict[Task, str] = {"segmentation": "dice", "classification": "accuracy"}
"""Key of the main metric (see `relay_core.metrics`) in the proof of an exported model."""


def shapes(task: Task, channels: int, classes: int) -> dict[str, list[int]]:
    """Return the shape of each output by name; -1 stands for the number, height and width of the images."""
    plane = [-1, -1] if task == "segmentation" else []
    output_shapes = ([-1, classes, *plane], [-1, classes, *plane], [-1, *plane], [-1, *plane], [-1, 2 * channels + 1])
    return dict(zip(OUTPUTS[task], output_shapes, strict=True))
