"""Define the request and response bodies of jobs and of their events, metrics and files."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from services.api.schemas.common import (
    EXAMPLE_CHECKPOINT,
    EXAMPLE_DATASET,
    EXAMPLE_JOB,
    EXAMPLE_RUN,
    EXAMPLE_TIME,
    CheckpointId,
    DatasetId,
    JobId,
    RequestBody,
    ResponseBody,
    RunId,
)
from services.api.schemas.models import ModelName
from services.api.schemas.runs import TaskNumber
from services.site import Kind, Precision, State

TaskKey = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}$")]
DatasetsBySite = Annotated[
    dict[TaskKey, DatasetId], Field(examples=[{"1": EXAMPLE_DATASET}], json_schema_extra={"additionalProperties": False})
]


class TrainRequest(RequestBody):
    """Train one site of a run, or with no site given and none set for the run, all of them on this machine."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"kind": "train", "run_id": EXAMPLE_RUN, "site": 1}]})

    kind: Literal["train"]
    run_id: RunId
    site: TaskNumber | None = None
    """Is the task_id of the site to train; null: the site that this hospital is in the run."""
    datasets: DatasetsBySite = Field(default_factory=dict)
    """Maps a site's task_id to its data set; a site that is not in it takes the data set of its own name."""
    checkpoint_id: CheckpointId | None = None
    """Is the checkpoint that a later site starts from; null: the newest one that the site before left here. One of this very
    site, which is not finished, is gone on with to its end."""
    until: Literal["end", "solver"] = "end"
    """Is where the job ends: `solver`, where the solver is ready, which may be before the generators are (the run's
    `gan_after_solver`). A second job with that checkpoint trains them."""
    gpus: Annotated[int, Field(ge=1, le=16)] = 1
    """Is the number of devices that train together."""


class EvaluateRequest(RequestBody):
    """Score a checkpoint on every test set of its run that is registered here."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"kind": "evaluate", "checkpoint_id": EXAMPLE_CHECKPOINT}]})

    kind: Literal["evaluate"]
    checkpoint_id: CheckpointId
    datasets: DatasetsBySite = Field(default_factory=dict)
    """Maps a site's task_id to its data set; a site that is not in it takes the data set of its own name."""


class SamplesRequest(RequestBody):
    """Draw what a checkpoint's generators remember of each site."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"kind": "samples", "checkpoint_id": EXAMPLE_CHECKPOINT, "per_site": 8}]}
    )

    kind: Literal["samples"]
    checkpoint_id: CheckpointId
    per_site: Annotated[int, Field(ge=1, le=64)] = 8


class CompareSitesRequest(RequestBody):
    """Compare the run's training images that are registered here with those that a checkpoint's generators draw.

    The job leaves `statistics.json`: histograms, medians and Kolmogorov-Smirnov statistics of brightness, contrast, colour,
    sharpness, size of the structures, and how unlike the training sites the images are.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"kind": "compare_sites", "checkpoint_id": EXAMPLE_CHECKPOINT}]}
    )

    kind: Literal["compare_sites"]
    checkpoint_id: CheckpointId
    datasets: DatasetsBySite = Field(default_factory=dict)
    """Maps a site's task_id to its data set; a site that is not in it takes the data set of its own name."""
    images: Annotated[int, Field(ge=5, le=10_000)] = 300
    """Is the most images of a site, real and generated; the real ones are chosen evenly."""


class PreflightRequest(RequestBody):
    """Check every file of a data set, and draw masks over some of its images."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"kind": "preflight", "dataset_id": EXAMPLE_DATASET, "previews": 8}]}
    )

    kind: Literal["preflight"]
    dataset_id: DatasetId
    previews: Annotated[int, Field(ge=0, le=32)] = 8


class ExportOnnxRequest(RequestBody):
    """Make a checkpoint's solver a model that can be served: the next version of its name.

    The model is tested on every test set of the run that is registered here; the job fails where it does not give what the
    solver gives.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"kind": "export_onnx", "checkpoint_id": EXAMPLE_CHECKPOINT, "name": "fundus"}]}
    )

    kind: Literal["export_onnx"]
    checkpoint_id: CheckpointId
    name: ModelName | None = None
    """Names the model; null: its name is made from the run's name."""
    precision: Precision = "fp32"
    """Sets the precision: fp16 and int8 are smaller; they must keep Dice, or accuracy, on each test set to within 0.01."""
    datasets: DatasetsBySite = Field(default_factory=dict)
    """Maps a site's task_id to its data set; a site that is not in it takes the data set of its own name."""


class PredictRequest(RequestBody):
    """Predict every image of a data set: masks and a table of measurements, or with a classifier a table of classes."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"kind": "predict", "checkpoint_id": EXAMPLE_CHECKPOINT, "dataset_id": EXAMPLE_DATASET}]
        }
    )

    kind: Literal["predict"]
    checkpoint_id: CheckpointId
    dataset_id: DatasetId


class PrivacyAuditRequest(RequestBody):
    """Attack a checkpoint's networks as its receiver could: which images was it trained on, and are any copied?

    The job's result is the outcome by the site's policy of release: passed, failed or inconclusive.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"kind": "privacy_audit", "checkpoint_id": EXAMPLE_CHECKPOINT}]}
    )

    kind: Literal["privacy_audit"]
    checkpoint_id: CheckpointId
    datasets: DatasetsBySite = Field(default_factory=dict)
    """Maps the site's task_id to its data set; default: the data set of the site's own name."""
    samples: Annotated[int, Field(ge=100, le=100_000)] = 10_000
    """Is the number of generated images that are searched for copies."""
    discriminators: bool = True
    """Says whether they are to leave too, as the export will: then they are attacked."""


JobRequest = Annotated[
    TrainRequest
    | EvaluateRequest
    | SamplesRequest
    | PreflightRequest
    | ExportOnnxRequest
    | PredictRequest
    | PrivacyAuditRequest
    | CompareSitesRequest,
    Field(discriminator="kind"),
]


class JobError(ResponseBody):
    """Says why a job failed."""

    model_config = ConfigDict(extra="allow")

    code: str = Field(examples=["out_of_memory"])
    message: str


class Job(ResponseBody):
    """Describes a job: what it is to do, how far it is, and its result."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": EXAMPLE_JOB, "kind": "train", "state": "running", "run_id": EXAMPLE_RUN, "checkpoint_id": None,
                    "params": {"site": 1, "datasets": {"1": EXAMPLE_DATASET}}, "gpus": 1, "attempt": 1, "tries": 1,
                    "created_by": "ana (3f9c01d2ab)", "worker": "gpu-1:412:1795449900", "events": 12,
                    "progress": {"site": "Domain1", "step": 400, "steps": 2000, "images_per_second": 61.0,
                                 "eta_seconds": 420.0},
                    "result": None, "error": None, "created_at": EXAMPLE_TIME, "queued_at": EXAMPLE_TIME,
                    "started_at": EXAMPLE_TIME, "finished_at": None,
                }
            ]
        }
    )  # fmt: skip

    id: JobId
    kind: Kind
    state: State
    """Goes queued, running, then succeeded, failed or (through cancelling) cancelled; retry leads back to queued."""
    params: dict[str, Any]
    run_id: str | None
    checkpoint_id: str | None
    """Names the checkpoint that the job starts from, or works on."""
    gpus: int
    attempt: int
    """Goes up whenever a worker takes the job."""
    tries: int
    """Counts the attempts since a person submitted or retried the job."""
    worker: str | None
    events: int
    """Counts the events of the job so far."""
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: JobError | None
    created_by: str
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Event(ResponseBody):
    """Describes one event of a job; its other keys depend on `event`."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {"seq": 4, "at": EXAMPLE_TIME, "attempt": 1, "event": "step", "site": "Domain1", "step": 20,
                 "steps": 2000, "losses": {"solver": 0.61}, "figures": {"stage": 1}, "images_per_second": 58.2,
                 "eta_seconds": 540.0}
            ]
        },
    )  # fmt: skip

    seq: int
    """Numbers the events of a job 1, 2, 3, ..."""
    at: datetime
    attempt: int
    event: str
    """Is its kind: queued, claimed, started, step, scores, checkpoint, samples, log, finished, succeeded, failed, ..."""


class EventPage(ResponseBody):
    """Holds some of a job's events, in order."""

    items: list[Event]
    next_after: int | None
    """Give it back as `after` for the next page; null: there are no more events for now."""


class Series(ResponseBody):
    """Holds one metric of one site over the training steps."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"site": "Domain1", "name": "solver", "steps": [20, 40], "values": [0.61, 0.48]}]}
    )

    site: str
    name: str
    steps: list[int]
    values: list[float | None]
    """Holds one value for each of `steps`."""


class StoredFile(ResponseBody):
    """Describes a file that a job left."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"name": "samples.png", "size": 48213, "media_type": "image/png", "digest": EXAMPLE_RUN}]
        }
    )

    name: str
    size: int
    """Is the size in bytes."""
    media_type: str
    digest: str
    """Is the SHA-256 of the file."""
