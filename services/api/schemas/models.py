"""Served models on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, StringConstraints

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
Output = Literal["measurements", "mask", "overlay", "nifti", "seg", "all"]

_PROOF: dict[str, JsonValue] = {
    "precision": "fp32", "bytes": 63659659, "opset": 20,
    "parity": [{"shape": [1, 3, 64, 64], "max_abs_difference": 1.2e-7}],
    "tests": {"Domain1": {"images": 30, "pixels": 122880, "differ": 0, "ties": 0, "dice": 0.962, "dice_torch": 0.962}},
}  # fmt: skip
_COMPARED: dict[str, JsonValue] = {
    "metric": "dice", "sites": [{"site": "Domain1", "current": 0.955, "new": 0.962, "difference": 0.007}], "worse": [],
}  # fmt: skip


class ModelVersion(ResponseBody):
    """A model that was exported and proved here."""

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
    """Whether it answers where no version is named."""
    run_id: RunId
    checkpoint_id: CheckpointId
    """What it was made of; it may be deleted by now."""
    job_id: JobId
    digest: str
    """SHA-256 of the file."""
    size: int
    """Bytes of the file."""
    facts: dict[str, Any]
    """What it says of itself: task, classes, channels, resolution, sites, checkpoint, what the training images looked
    like."""
    proof: dict[str, Any]
    """Largest difference of its logits to torch's by shape; Dice, or accuracy, on each test set next to torch's."""
    created_by: str
    created_at: datetime


class SiteComparison(ResponseBody):
    """The metric on one test set."""

    site: str
    current: float | None
    """Of the version in production."""
    new: float | None
    difference: float | None


class Comparison(ResponseBody):
    """A version against the one in production."""

    model_config = ConfigDict(json_schema_extra={"examples": [_COMPARED]})

    metric: Literal["dice", "accuracy"] = "dice"
    """Dice per sample; accuracy of classifiers."""
    sites: list[SiteComparison]
    worse: list[str]
    """Test sets on which it is worse, or was not tested, or not for the same: a promotion needs a reason then."""


class Production(ResponseBody):
    """Which version of a model answers, and why."""

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
    """How often it was changed; also the ETag. 0: nothing is in production yet."""
    version: int | None
    actor: str | None
    reason: str | None
    comparison: Comparison | None
    """What was shown to who decided."""
    at: datetime | None


class PromoteRequest(RequestBody):
    """Which version is to answer from now on."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 1, "reason": "first model of this site"}]})

    version: Version
    reason: Reason | None = None
    """Needed where it is worse than the present one on any test set."""


class RollbackRequest(RequestBody):
    """Why the version before is to answer again."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "cups too large on the new camera"}]})

    reason: Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=r"^[^\x00]*\S[^\x00]*$")]


class ClassFound(ResponseBody):
    """How much of a class is in an image."""

    id: int
    name: str
    pixels: int
    """Voxels of a volume."""
    area_mm2: float | None = None
    """Of a picture; null where the spacing is not known."""
    volume_mm3: float | None = None
    """Of a volume; null where the spacing is not known."""
    confidence: float | None
    """Mean probability of the class where it is; null where it is nowhere."""


class CupToDisc(ResponseBody):
    """Cup over disc; null where there is no disc."""

    vertical: float | None
    horizontal: float | None
    area: float | None


class Unlike(ResponseBody):
    """How unlike the training images an image is."""

    score: float
    """Up to 1: like most of them."""
    most_like: str
    """The training site that it is most like."""
    warn_above: float


class Seen(ResponseBody):
    """What every model says of an image."""

    model: str
    version: int
    provider: str
    """What ran it."""
    width: int
    height: int
    slices: int
    """1, or those of a volume; a classifier takes them for one case, and the mean of their probabilities counts."""
    unlike: Unlike | None
    """null: the model does not say what its training images looked like."""
    warnings: list[str]
    """For whoever reads the answer; also the header X-Relay-Warning."""


class Measurements(Seen):
    """What a model sees in an image."""

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
    """Slice to slice, row to row, column to column; null where the file does not tell."""
    classes: list[ClassFound]
    """All but the background."""
    mean_confidence: float
    cup_to_disc: CupToDisc | None = None
    """Of a 2-D image, where the classes are disc and cup."""


class ClassProbability(ResponseBody):
    """How probable a class is."""

    id: int
    name: str
    probability: float


class Classified(Seen):
    """What a classifier says of an image."""

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
    """The most probable class."""
    class_name: str
    confidence: float
    """Its probability."""
    probabilities: list[ClassProbability]
    """Of every class."""
