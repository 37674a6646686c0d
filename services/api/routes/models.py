"""Serve models: their versions, which of them is in production, and predictions of images that people upload."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Body, Header, Query, Request, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from relay_core.inference import Question
from services.api import pages, schemas
from services.api.deps import IfMatch, Operator, ServiceParts, Site, Viewer, need_room
from services.api.docs import ETAG, LOCATION, Responses, changes, refusals, success
from services.api.inference import Hosted
from services.api.pages import PageQuery
from services.api.streaming import PartQuery, download, note_download, stored
from services.site import Identity, Refusal, artifacts, job_plans, jobs, registry
from services.site.db import Artifact, Job, Model, Promotion

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
STUDIES = 4
"""The most jobs of studies of one caller that may wait or run."""
UPLOADS = ("application/octet-stream", "image/png", "image/jpeg", "image/tiff", "application/dicom", "application/gzip",
           "application/zip")  # fmt: skip


@router.get("", responses=refusals("cursor_invalid"))
def list_models(
    site: Site,
    caller: Viewer,
    paging: PageQuery,
    name: Annotated[schemas.ModelName | schemas.Absent, Query()] = None,
    run_id: Annotated[schemas.RunId | schemas.Absent, Query()] = None,
) -> schemas.Page[schemas.ModelVersion]:
    """Versions of all models, newest first."""
    filters = {"name": name, "run_id": run_id}
    with site.database.read() as session:
        rows, cursor = pages.read(session, site.settings.key, Model, paging, filters, [Model.id])
        return schemas.Page(items=_response_bodies(session, rows), next_cursor=cursor)


@router.get("/{name}", responses={**success(200, "Its production.", headers=ETAG), **refusals("not_found")})
def get_production(name: schemas.ModelName, site: Site, caller: Viewer, response: Response) -> schemas.Production:
    """Which version of a model is in production, since when and why."""
    with site.database.read() as session:
        last = registry.production(session, name)
        if last is None and session.scalars(select(Model.id).where(Model.name == name).limit(1)).first() is None:
            raise Refusal("not_found", f"model {name} is not known here")
        return _production_body(name, last, response)


@router.get("/{name}/versions/{version}", responses=refusals("not_found"))
def get_model(name: schemas.ModelName, version: schemas.Version, site: Site, caller: Viewer) -> schemas.ModelVersion:
    """One version: what it was made of, and how it was proved."""
    with site.database.read() as session:
        return _response_bodies(session, [registry.version(session, name, version)])[0]


@router.get("/{name}/versions/{version}/comparison", responses=refusals("not_found"))
def compare_model(name: schemas.ModelName, version: schemas.Version, site: Site, caller: Viewer) -> schemas.Comparison:
    """A version's Dice, or accuracy, on each test set next to that of the one in production: look before you promote."""
    with site.database.read() as session:
        row, last = registry.version(session, name, version), registry.production(session, name)
        current = registry.version(session, name, last.version) if last else None
        return schemas.Comparison.model_validate(registry.compare(row, current))


@router.get(
    "/{name}/versions/{version}/download",
    response_class=Response,
    responses={
        **download("The ONNX file.", registry.MEDIA_TYPE),
        **refusals("not_found", "artifact_damaged", "range_not_satisfiable"),
    },
)
def download_model(
    name: schemas.ModelName, version: schemas.Version, site: Site, caller: Viewer, part: PartQuery
) -> Response:
    """Download a version's ONNX file, with its facts in the metadata."""
    with site.database.read() as session:
        row = registry.version(session, name, version)
        artifact = session.get_one(Artifact, row.digest)
    note_download(site, caller, f"{name}/{version}", artifact, part)
    return stored(site, artifact, registry.MEDIA_TYPE, filename=f"{name}-{version}.onnx", part=part)


@router.delete("/{name}/versions/{version}", status_code=204, responses=refusals("forbidden", "not_found", "in_use"))
def delete_model(name: schemas.ModelName, version: schemas.Version, site: Site, caller: Operator) -> None:
    """Delete a version. Refused while it is in production, or was before the present one."""
    with site.database.write() as session:
        registry.delete(session, name, version, caller.actor)
    site.host.drop(name, version)


_CHANGED: Responses = {
    **success(200, "What is in production now.", headers=ETAG),
    **changes("not_found", "conflict", "reason_missing", "precondition_required", "precondition_failed"),
}


@router.post("/{name}/promote", responses=_CHANGED)
def promote_model(
    name: schemas.ModelName, body: Annotated[schemas.PromoteRequest, Body()], if_match: IfMatch, site: Site,
    caller: Operator, response: Response,
) -> schemas.Production:  # fmt: skip
    """Put a version into production: it answers where no version is named.

    One that is worse than the present one on any test set needs a reason; the refusal shows the comparison.
    """
    with site.database.write() as session:
        _check_etag(session, name, if_match)
        promotion = registry.promote(session, name, body.version, caller.actor, body.reason)
        return _production_body(name, promotion, response)


@router.post("/{name}/rollback", responses=_CHANGED)
def roll_back_model(
    name: schemas.ModelName, body: Annotated[schemas.RollbackRequest, Body()], if_match: IfMatch, site: Site,
    caller: Operator, response: Response,
) -> schemas.Production:  # fmt: skip
    """Go back to the version that was in production before the last change."""
    with site.database.write() as session:
        _check_etag(session, name, if_match)
        promotion = registry.roll_back(session, name, caller.actor, body.reason)
        return _production_body(name, promotion, response)


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
            "storage_full", "model_unavailable", "model_invalid", "artifact_damaged",
        ),
    },
    openapi_extra={"requestBody": {"required": True, "content": dict.fromkeys(UPLOADS, _BYTES)}},
)  # fmt: skip
async def predict_image(
    name: schemas.ModelName, request: Request, site: Site, caller: Viewer, version: VersionQuery = None,
    output: Annotated[
        schemas.Output | schemas.Absent,
        Query(description="Default: measurements; a classifier's class, and it has nothing else. mask and overlay: PNG of a "
              "2-D image; nifti: with the source's geometry; seg: DICOM SEG; all: a zip of everything that there is."),
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
        if (session.scalar(own) or 0) >= STUDIES:
            raise Refusal("busy", f"{STUDIES} studies of yours wait already; try again later", {"Retry-After": "60"})
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
    if facts.task == "classification" and output is not None:
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


def _check_etag(session: Session, name: str, if_match: str) -> None:
    promotion = registry.production(session, name)
    current_etag = f'"{promotion.number if promotion else 0}"'
    if if_match != current_etag:
        raise Refusal(
            "precondition_failed", f"what is in production of {name} was changed; read it again", {"ETag": current_etag}
        )


def _production_body(name: str, promotion: Promotion | None, response: Response) -> schemas.Production:
    response.headers["ETag"] = f'"{promotion.number if promotion else 0}"'
    if promotion is None:
        return schemas.Production(name=name, number=0, version=None, actor=None, reason=None, comparison=None, at=None)
    return schemas.Production.model_validate(promotion)


def _response_bodies(session: Session, rows: Sequence[Model]) -> list[schemas.ModelVersion]:
    size_rows = session.execute(
        select(Artifact.digest, Artifact.size).where(Artifact.digest.in_({row.digest for row in rows}))
    )
    sizes = dict(size_rows.tuples().all())
    current = registry.in_production(session)
    copied = ("name", "version", "precision", "run_id", "checkpoint_id", "job_id", "digest", "created_by", "created_at")
    return [
        schemas.ModelVersion(
            **{field: getattr(row, field) for field in copied}, production=current.get(row.name) == row.version,
            size=sizes[row.digest], facts=row.facts["facts"], proof=row.facts["proof"],
        )
        for row in rows
    ]  # fmt: skip
