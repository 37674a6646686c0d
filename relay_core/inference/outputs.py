"""What a served model gives, by what it was trained for. Imports neither torch nor ONNX Runtime."""

from __future__ import annotations

from relay_core.config import Task

ANSWER: dict[Task, str] = {"segmentation": "mask", "classification": "class"}
"""The output that says what is seen: the class of every pixel, or of the image."""
OUTPUTS: dict[Task, tuple[str, ...]] = {
    task: ("logits", "probabilities", "confidence", answer, "looks") for task, answer in ANSWER.items()
}
"""All outputs, in the graph's order."""
SCORE: dict[Task, str] = {"segmentation": "dice", "classification": "accuracy"}
"""Key of the main metric (see `relay_core.metrics`) in the proof of an exported model."""


def shapes(task: Task, channels: int, classes: int) -> dict[str, list[int]]:
    """The shape of each output; -1 where the images decide: how many there are, their height and width."""
    plane = [-1, -1] if task == "segmentation" else []
    every = ([-1, classes, *plane], [-1, classes, *plane], [-1, *plane], [-1, *plane], [-1, 2 * channels + 1])
    return dict(zip(OUTPUTS[task], every, strict=True))
