"""Serve predictions of images that people upload: at once, or for a large study as a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from sqlalchemy import func, select

from relay_core.inference import Question
from services.api import schemas
from services.api.deps import ServiceParts, Site, Viewer, need_room
from services.api.docs import LOCATION, refusals
from services.api.inference import Hosted
from services.site import Identity, Refusal, artifacts, job_plans, jobs, registry
from services.site.db import Artifact, Job

router = APIRouter(prefix="/api/v1/models", tags=["models"])
VersionQuery = Annotated[
    schemas.Version | schemas.Absent, Query(description="Default: the one in production.", examples=[1])
]
PREDICTED = {
    "X-Relay-Model": {"description": "name/version", "required": True, "schema": {"type": "string"}},
    "X-Relay-Provider": {"description": "What ran it.", "required": True, "schema": {"type": "string"}},
    "X-Relay-Warning": {
        "description": "What whoever reads the answer should know.",
        "schema": {"type": "string"},
    },
}
_BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
WAITING_PIXELS = 1 << 25
"""The most pixels of a study, all slices together, that its caller waits for; a larger one becomes a job."""
UPLOADS = ("application/octet-stream", "image/png", "image/jpeg", "image/tiff", "application/dicom", "application/gzip",
           "application/zip")  # fmt: skip


@router.post(
    "/{name}/predict",
    response_model=schemas.Measurements | schemas.Classified,
    responses={
        200: {
            "description": "What the model sees; other outputs are files.",
            "headers": PREDICTED,
            "content": dict.fromkeys(("image/png", "application/gzip", "application/dicom", "application/zip"), _BYTES),
        },
        202: {
            "description": "A large volume: a job predicts it.", "model": schemas.Job,
            "headers": LOCATION | {"Preference-Applied": {"description": "respond-async", "schema": {"type": "string"}}},
        },
        **refusals(
            "bad_request", "too_large", "not_found", "image_invalid", "image_too_large", "busy", "too_slow", "queue_full",
            "decoder_unavailable",
            "storage_full", "volume_away", "model_unavailable", "model_invalid", "artifact_damaged",
        ),
    },
    openapi_extra={"requestBody": {"required": True, "content": dict.fromkeys(UPLOADS, _BYTES)}},
)  # fmt: skip
async def predict_image(
    name: schemas.ModelName, request: Request, site: Site, caller: Viewer, version: VersionQuery = None,
    output: Annotated[
        schemas.Output | schemas.Absent,
        Query(description="Default: measurements; a classifier's class. pictures: the same, with every slice to be shown; a "
              "classifier has nothing else. mask and overlay: PNG of a 2-D image; nifti: with the source's geometry; "
              "seg: DICOM SEG; all: a zip of all of these files."),
    ] = None,
    prefer: Annotated[
        str | schemas.Absent, Header(description="respond-async: make a job of it.", examples=["respond-async"])
    ] = None,
) -> Response:  # fmt: skip
    """Send an image as the body, whatever its Content-Type: PNG, JPEG, TIFF, NIfTI (2-D, or a volume slice by slice), DICOM
    (single or multi-frame), or a zip of a DICOM series. Nothing of it is kept.

    A large volume is answered with 202 and a job, whose file `prediction.*` is the answer. The volume is kept until the job
    has ended.
    """
    asynchronous = "respond-async" in [part.split(";")[0].strip().lower() for part in (prefer or "").split(",")]
    async with site.turns.take(caller.token_id), site.intake.body(request, caller.token_id) as content:
        upload = _Upload(content, output, asynchronous)
        return await to_thread.run_sync(_predict, site, caller, name, version, upload, limiter=site.predictions)


@dataclass(frozen=True)
class _Upload:
    """An image that was sent, and what is wanted of it."""

    content: bytes
    output: schemas.Output | None
    asynchronous: bool
    """Whether the client prefers a job."""


class _TooLargeToWait(Exception):
    """A study is so large that its caller does not wait for it."""


def _predict(site: ServiceParts, caller: Identity, name: str, version: int | None, upload: _Upload) -> Response:
    if not upload.content:
        raise Refusal("bad_request", "the body is empty: send the image itself")

    def decoded(slices: int, rows: int, columns: int) -> None:
        if slices * rows * columns > WAITING_PIXELS:
            raise _TooLargeToWait

    with borrowed(site, name, version) as hosted:
        question = _question(hosted, upload.output)
        if upload.asynchronous:
            return _queue(site, caller, hosted, upload)
        try:
            answer = site.decoders.answer(upload.content, question, partial(hosted.run, caller=caller.token_id), decoded)
        except _TooLargeToWait:
            return _queue(site, caller, hosted, upload)
    headers = {"X-Relay-Model": f"{hosted.name}/{hosted.version}", "X-Relay-Provider": hosted.session.provider}
    if answer.warnings:
        headers["X-Relay-Warning"] = "; ".join(answer.warnings).encode("ascii", "replace").decode()
    return Response(answer.body, media_type=answer.media_type, headers=headers)


def _queue(site: ServiceParts, caller: Identity, hosted: Hosted, upload: _Upload) -> Response:
    """Make a job of a prediction; the upload is kept until the job has ended."""
    with site.database.read() as session:
        own = select(func.count()).select_from(Job).where(
            Job.kind == "predict_study", Job.created_by == caller.actor, Job.state.in_(jobs.ACTIVE)
        )  # fmt: skip
        if (session.scalar(own) or 0) >= (most := site.settings.serve_studies):
            raise Refusal("busy", f"{most} studies of yours wait already; try again later", {"Retry-After": "60"})
    need_room(site, len(upload.content))
    stored_upload = (*site.store.put([upload.content]), "application/octet-stream")
    with site.database.write() as session:
        row = registry.version(session, hosted.name, hosted.version)
        plan = job_plans.predict_study(row.name, row.version, upload.output)
        job, _ = jobs.submit(
            session, kind="predict_study", params=plan.params, actor=caller.actor, key=None, body=plan.params,
            queue_limit=site.settings.queue_limit,
        )  # fmt: skip
        artifacts.attach(session, jobs.uploaded(job.id), "upload", *stored_upload)
        model_size = session.get_one(Artifact, row.digest).size
        artifacts.attach(session, jobs.uploaded(job.id), "model.onnx", row.digest, model_size, registry.MEDIA_TYPE)
        body = schemas.Job.model_validate(job)
    site.doorbell.ring(body.id)
    headers = {"Location": f"/api/v1/jobs/{body.id}", "Preference-Applied": "respond-async"}
    return Response(body.model_dump_json(), 202, headers=headers, media_type="application/json")


def _question(hosted: Hosted, output: schemas.Output | None) -> Question:
    """Return what is asked of a model. Raises Refusal `invalid_request` where it has no such output."""
    facts = hosted.session.facts
    if facts.task == "classification" and output not in (None, "pictures"):
        message = (
            f"output: {hosted.name} is a classifier, which says one class of an image and has no {output}: leave it out"
        )
        raise Refusal("invalid_request", message)
    return Question.about(facts, hosted.name, hosted.version, hosted.session.provider, output)


@contextmanager
def borrowed(site: ServiceParts, name: str, version: int | None) -> Iterator[Hosted]:
    """Give a version of a model, in memory as long as the block lasts; None: the version in production.

    Raises:
        Refusal: `not_found`; `model_unavailable` where it cannot run here; `artifact_damaged` where its file is.
    """
    with site.database.read() as session:
        row = registry.version(session, name, version)
        key = row.name, row.version, row.digest
    with site.host.borrow(*key) as hosted:
        yield hosted
