"""Define the request and response bodies of served models."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, StringConstraints

from relay_core.inference import Form
from services.api.schemas.common import (
    EXAMPLE_CHECKPOINT,
    EXAMPLE_JOB,
    EXAMPLE_RUN,
    EXAMPLE_TIME,
    CheckpointId,
    JobId,
    RequestBody,
    ResponseBody,
    RunId,
)
from services.site import Precision

ModelName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$"), Field(examples=["fundus"], description="Of a model.")
]
Version = Annotated[int, Field(ge=1, lt=1 << 31, examples=[1])]
Reason = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00]*$"), Field(examples=["fewer false cups"])]
Output = Form

_PROOF: dict[str, JsonValue] = {
    "precision": "fp32", "bytes": 63659659, "opset": 20,
    "parity": [{"shape": [1, 3, 64, 64], "max_abs_difference": 1.2e-7}],
    "tests": {"Domain1": {"images": 30, "pixels": 122880, "differ": 0, "ties": 0, "dice": 0.962, "dice_torch": 0.962}},
}  # fmt: skip
_COMPARED: dict[str, JsonValue] = {
    "metric": "dice", "sites": [{"site": "Domain1", "current": 0.955, "new": 0.962, "difference": 0.007}], "worse": [],
}  # fmt: skip


class ModelVersion(ResponseBody):
    """Describes one version of a model that was exported and tested here."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "fundus", "version": 1, "precision": "fp32", "production": True, "run_id": EXAMPLE_RUN,
                    "checkpoint_id": EXAMPLE_CHECKPOINT, "job_id": EXAMPLE_JOB, "digest": EXAMPLE_RUN, "size": 63659659,
                    "facts": {"classes": ["background", "optic disc", "optic cup"], "resolution": 64, "channels": 3},
                    "proof": _PROOF, "created_by": "ana (3f9c01d2ab)", "created_at": EXAMPLE_TIME,
                }
            ]
        }
    )  # fmt: skip

    name: ModelName
    version: int
    precision: Precision
    production: bool
    """Says whether this version answers where no version is named."""
    run_id: RunId
    checkpoint_id: CheckpointId
    """Names the checkpoint that the model was made of; it may be deleted by now."""
    job_id: JobId
    digest: str
    """Is the SHA-256 of the file."""
    size: int
    """Is the size of the file in bytes."""
    facts: dict[str, Any]
    """Holds what the file says of the model: task, classes, channels, resolution, sites, checkpoint, and the feature
    statistics of the training images (`looks`)."""
    proof: dict[str, Any]
    """Holds the tests: largest difference to torch's logits by shape, and Dice or accuracy next to torch's by test set."""
    created_by: str
    created_at: datetime


class SiteComparison(ResponseBody):
    """Compares the metric of two versions on one test set."""

    site: str
    current: float | None
    """Is the metric of the version in production."""
    new: float | None
    difference: float | None


class Comparison(ResponseBody):
    """Compares a version with the one in production."""

    model_config = ConfigDict(json_schema_extra={"examples": [_COMPARED]})

    metric: Literal["dice", "accuracy"] = "dice"
    """Names the metric: Dice per sample, or the accuracy of classifiers."""
    sites: list[SiteComparison]
    worse: list[str]
    """Lists test sets where it is worse, was not tested, or is for another task; a promotion then needs a reason."""


class Production(ResponseBody):
    """Says which version of a model is in production, and why."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"name": "fundus", "number": 1, "version": 1, "actor": "ana (3f9c01d2ab)", "reason": None,
                 "comparison": _COMPARED, "at": EXAMPLE_TIME}
            ]
        }
    )  # fmt: skip

    name: ModelName
    number: int
    """Counts the changes of what is in production; it is also the ETag. 0: nothing is in production yet."""
    version: int | None
    actor: str | None
    reason: str | None
    comparison: Comparison | None
    """Holds the comparison that was shown to whoever decided."""
    at: datetime | None


class PromoteRequest(RequestBody):
    """Says which version is to be in production."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 1, "reason": "first model of this site"}]})

    version: Version
    reason: Reason | None = None
    """Says why; this is needed where the version is worse than the present one on any test set."""


class RollbackRequest(RequestBody):
    """Says why the version before is to be in production again."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "cups too large on the new camera"}]})

    reason: Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=r"^[^\x00]*\S[^\x00]*$")]


class ClassFound(ResponseBody):
    """Says how much of a class is in an image."""

    id: int
    name: str
    pixels: int
    """Counts the pixels of the class; of a volume, its voxels."""
    area_mm2: float | None = None
    """Is the area of the class in a single image; null where the spacing is not known."""
    volume_mm3: float | None = None
    """Is the volume of the class in a stack of slices; null where the spacing is not known."""
    confidence: float | None
    """Is the mean probability of the class over its pixels; null where it has none."""


class CupToDisc(ResponseBody):
    """Holds the ratios of the optic cup to the optic disc; null where there is no disc."""

    vertical: float | None
    horizontal: float | None
    area: float | None


class Unlike(ResponseBody):
    """Holds the out-of-distribution score of an image."""

    score: float
    """Is the out-of-distribution score; up to 1, the image is like most training images."""
    most_like: str
    """Names the training site whose images it is most like."""
    warn_above: float


class Pictures(ResponseBody):
    """Holds every slice of an image, and apart from them what was found there, to be laid over it.

    Slice i, counted from 0, begins in both PNGs at column (i % columns) * width and row floor(i / columns) * height.
    """

    image: str = Field(json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"})
    """Is a PNG with the slices as the model sees them: large ones reduced, pixels square where the spacing is known."""
    found: str | None = Field(json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"})
    """Is a PNG of the same size, transparent where there is background; null: a classifier draws nothing."""
    width: int
    """Counts the pixels of a slice in the PNGs from left to right."""
    height: int
    """Counts the pixels of a slice in the PNGs from top to bottom."""
    columns: int
    """Counts the slices in a row of the PNGs."""
    fullest: int
    """Is the number of the slice, counted from 1, with the most foreground; the middle one where there is none."""
    colours: list[str]
    """Lists the colours of the classes but the background, as #rrggbb."""


class Seen(ResponseBody):
    """Holds what models of every kind say of an image."""

    model: str
    version: int
    provider: str
    """Names what ran the model: a provider of ONNX Runtime."""
    width: int
    height: int
    slices: int
    """Counts the slices of a volume, else 1; a classifier takes them for one case and averages their probabilities."""
    unlike: Unlike | None
    """Holds the out-of-distribution score; null: the model has no feature statistics of its training images."""
    warnings: list[str]
    """Lists what whoever reads the answer should know; it is also in the header X-Relay-Warning."""
    pictures: Pictures | None = None
    """Holds the slices to be shown, if `output` asks for `pictures`."""


class Measurements(Seen):
    """Holds what a segmentation model finds in an image."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "fundus", "version": 1, "provider": "CPUExecutionProvider", "width": 128, "height": 128,
                    "slices": 1, "spacing_mm": None,
                    "classes": [{"id": 1, "name": "optic disc", "pixels": 1412, "area_mm2": None, "confidence": 0.97}],
                    "mean_confidence": 0.99, "cup_to_disc": {"vertical": 0.52, "horizontal": 0.49, "area": 0.27},
                    "unlike": {"score": 0.6, "most_like": "Domain1", "warn_above": 1.5}, "warnings": [],
                }
            ]
        }
    )  # fmt: skip

    spacing_mm: list[float | None] | None
    """Holds the distances between slices, rows and columns; null where the file does not tell."""
    classes: list[ClassFound]
    """Holds all classes but the background."""
    mean_confidence: float
    cup_to_disc: CupToDisc | None = None
    """Holds the ratios of a 2-D image, where the classes are disc and cup."""


class ClassProbability(ResponseBody):
    """Says how probable a class is."""

    id: int
    name: str
    probability: float


class Classified(Seen):
    """Holds what a classifier says of an image."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "tumour", "version": 1, "provider": "CPUExecutionProvider", "width": 256, "height": 256,
                    "slices": 1, "class": 1, "class_name": "positive", "confidence": 0.93,
                    "probabilities": [{"id": 0, "name": "negative", "probability": 0.07},
                                      {"id": 1, "name": "positive", "probability": 0.93}],
                    "unlike": {"score": 0.6, "most_like": "North", "warn_above": 1.5}, "warnings": [],
                }
            ]
        }
    )  # fmt: skip

    class_: int = Field(alias="class")
    """Is the id of the most probable class."""
    class_name: str
    confidence: float
    """Is the probability of that class."""
    probabilities: list[ClassProbability]
    """Holds the probability of every class."""
