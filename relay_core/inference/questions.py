"""What may be asked of a model about one upload, and what is answered; `answers` makes the one of the other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from relay_core.config import Fit, Task

if TYPE_CHECKING:
    from relay_core.inference.onnx_model import ModelFacts

Form = Literal["measurements", "mask", "overlay", "nifti", "seg", "all", "pictures"]
"""What is wanted of a segmentation; a classifier has measurements and pictures alone."""


SUFFIXES = {
    "application/json": ".json", "image/png": ".png", "application/gzip": ".nii.gz", "application/dicom": ".dcm",
    "application/zip": ".zip",
}  # fmt: skip
"""Suffix of a file with an answer, by its media type."""


@dataclass(frozen=True)
class Question:
    """What is asked, and what must be known of the model to answer."""

    model: str
    version: int
    provider: str
    """What runs the network, for the answer."""
    task: Task
    classes: tuple[str, ...]
    channels: int
    resolution: int
    """Side in pixels of the images that the network takes."""
    window: tuple[float, float] | None
    """Measured values (HU) that are black and white to the network; None: it learned from grey values without unit."""
    looks: dict[str, Any]
    """Feature statistics of the training images by site, see `imaging.out_of_distribution`."""
    form: Form = "measurements"
    fit: Fit = "stretch"
    """How an image that is not square becomes one."""

    @classmethod
    def about(cls, facts: ModelFacts, model: str, version: int, provider: str, form: Form | None) -> Question:
        """Return what is asked of an exported model; without a form its measurements, or a classifier's class."""
        return cls(
            model, version, provider, facts.task, facts.classes, facts.channels, facts.resolution, facts.window, facts.looks,
            form or "measurements", facts.fit,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return the question as plain data."""
        return asdict(self)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Question:
        """Return the question that `to_json` made plain."""
        low_and_high = fields["window"]
        window = (low_and_high[0], low_and_high[1]) if low_and_high else None
        return cls(**{**fields, "classes": tuple(fields["classes"]), "window": window})


@dataclass(frozen=True)
class Answer:
    """The answer to a question."""

    body: bytes
    media_type: str
    warnings: tuple[str, ...]
    """What whoever reads the answer should know."""
