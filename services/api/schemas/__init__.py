"""What goes over the wire: request and response bodies, and the values of parameters."""

from services.api.schemas.common import Absent, CheckpointId, DatasetId, EvaluationId, JobId, Page, Problem, RunId, Words
from services.api.schemas.datasets import Dataset, DatasetChange, DatasetRequest
from services.api.schemas.handoff import BundleId, Export, ExportRequest, HandOffRequest, Import, Rejection, ReportRequest
from services.api.schemas.jobs import (
    EvaluateRequest,
    Event,
    EventPage,
    Job,
    JobRequest,
    PreflightRequest,
    SamplesRequest,
    Series,
    StoredFile,
    TrainRequest,
)
from services.api.schemas.results import Checkpoint, CheckpointChange, Evaluation, EvaluationSummary
from services.api.schemas.runs import Run, RunChange
from services.api.schemas.system import AuditRecord, CatalogueEntry, Check, Health, Readiness, System, Worker

__all__ = [
    "Absent",
    "AuditRecord",
    "BundleId",
    "CatalogueEntry",
    "Check",
    "Checkpoint",
    "CheckpointChange",
    "CheckpointId",
    "Dataset",
    "DatasetChange",
    "DatasetId",
    "DatasetRequest",
    "EvaluateRequest",
    "Evaluation",
    "EvaluationId",
    "EvaluationSummary",
    "Event",
    "EventPage",
    "Export",
    "ExportRequest",
    "HandOffRequest",
    "Health",
    "Import",
    "Job",
    "JobId",
    "JobRequest",
    "Page",
    "PreflightRequest",
    "Problem",
    "Readiness",
    "Rejection",
    "ReportRequest",
    "Run",
    "RunChange",
    "RunId",
    "SamplesRequest",
    "Series",
    "StoredFile",
    "System",
    "TrainRequest",
    "Words",
    "Worker",
]
