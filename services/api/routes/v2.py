"""Serve the Open Inference Protocol, by which programs call models; `inference.oip` reads and writes its bodies."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Path, Request, Response
from sqlalchemy import select

import relay_core
from services.api import schemas
from services.api.deps import ModelCaller, ServiceParts, Site, client_address
from services.api.docs import refusals, success
from services.api.inference import Hosted, oip
from services.api.routes.predictions import borrowed
from services.site import Identity, Refusal, registry
from services.site.db import Model

router = APIRouter(prefix="/v2", tags=["inference"])
INLINE = 1 << 18
"""The most bytes of a request that is read without a thread of its own."""
MOST_PIXELS = 1 << 25
"""The most pixels of all images of one request together."""
MOST_SEEN = 1 << 22
"""The most pixels that the network sees of one request, at its own resolution."""
VersionPath = Annotated[
    str,
    Path(pattern=r"^([1-9][0-9]{0,8}|production)$", description="A number, or production.", examples=["production"]),
]
_NUMBER = {"type": "integer", "minimum": 1}
_OBJECT: dict[str, Any] = {"schema": {"type": "object"}}
_BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "inputs": {
            "type": "array", "minItems": 1, "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "shape", "datatype", "data"],
                "properties": {
                    "name": {"const": "image"},
                    "shape": {"type": "array", "minItems": 4, "maxItems": 4, "items": _NUMBER},
                    "datatype": {"const": "FP32"},
                    "data": {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}},
                },
            },
        },
        "outputs": {
            "type": "array",
            "items": {
                "type": "object", "required": ["name"], "properties": {"name": {"enum": list(oip.OUTPUT_TYPES)}},
            },
        },
    },
    "examples": [
        {
            "inputs": [{"name": "image", "shape": [1, 1, 2, 2], "datatype": "FP32", "data": [0.1, 0.2, 0.3, 0.4]}],
            "outputs": [{"name": "mask"}],
        }
    ],
}  # fmt: skip


def _refusals(*codes: str) -> Any:
    return refusals("not_found", *codes)


@router.get("")
async def server_metadata() -> dict[str, Any]:
    """Name, version and extensions of this server."""
    extensions = ["binary_tensor_data", "model_repository", "statistics"]
    return {"name": "relay", "version": relay_core.__version__, "extensions": extensions}


@router.get("/health/live")
async def server_live() -> dict[str, bool]:
    """The process answers."""
    return {"live": True}


@router.get("/health/ready", responses=refusals("model_unavailable", public=True))
def server_ready(site: Site) -> dict[str, bool]:
    """Models can be called."""
    from services.api.inference import hosting

    hosting.runtime()
    return {"ready": True}


@router.get("/models/stats", responses=refusals())
def all_statistics(site: Site, caller: ModelCaller) -> dict[str, Any]:
    """Statistics of every version of every model since this process began."""
    return _statistics(site, None, None)


@router.post("/repository/index", responses=refusals("bad_request", "too_large", "unsupported_media_type"))
def repository_index(site: Site, caller: ModelCaller) -> list[dict[str, str]]:
    """Every version of every model; READY: it is in memory."""
    loaded = {(hosted.name, hosted.version) for hosted in site.host.loaded}
    with site.database.read() as session:
        rows = session.execute(select(Model.name, Model.version).order_by(Model.name, Model.version)).tuples().all()
    return [
        {"name": name, "version": str(number), "state": "READY" if (name, number) in loaded else "UNAVAILABLE",
         "reason": "" if (name, number) in loaded else "loaded by its first caller"}
        for name, number in rows
    ]  # fmt: skip


@router.get("/models/{name}", responses=_refusals())
def model_metadata(name: schemas.ModelName, site: Site, caller: ModelCaller) -> dict[str, Any]:
    """Inputs and outputs of the version in production."""
    return _metadata(site, name, None)


@router.get("/models/{name}/versions/{version}", responses=_refusals())
def version_metadata(name: schemas.ModelName, version: VersionPath, site: Site, caller: ModelCaller) -> dict[str, Any]:
    """Inputs and outputs of a version."""
    return _metadata(site, name, version)


@router.get("/models/{name}/ready", responses=_refusals("model_unavailable", "model_invalid", "artifact_damaged"))
def model_ready(name: schemas.ModelName, site: Site, caller: ModelCaller) -> dict[str, Any]:
    """Whether the version in production answers; loads it."""
    with borrowed(site, name, None):
        return {"name": name, "ready": True}


@router.get(
    "/models/{name}/versions/{version}/ready",
    responses=_refusals("model_unavailable", "model_invalid", "artifact_damaged"),
)
def version_ready(name: schemas.ModelName, version: VersionPath, site: Site, caller: ModelCaller) -> dict[str, Any]:
    """Whether a version answers; loads it."""
    with borrowed(site, name, _number(version)):
        return {"name": name, "ready": True}


@router.get("/models/{name}/stats", responses=_refusals())
def model_statistics(name: schemas.ModelName, site: Site, caller: ModelCaller) -> dict[str, Any]:
    """Statistics of every version of a model."""
    return _statistics(site, name, None)


@router.get("/models/{name}/versions/{version}/stats", responses=_refusals())
def version_statistics(name: schemas.ModelName, version: VersionPath, site: Site, caller: ModelCaller) -> dict[str, Any]:
    """Statistics of a version."""
    return _statistics(site, name, version)


_INFER: dict[str, Any] = {
    "response_class": Response,
    "responses": {
        200: {
            **success(
                200, "The outputs: JSON, or with binary tensors JSON and the bytes behind it.",
                headers={
                    "X-Relay-Provider": {"description": "What ran it.", "required": True, "schema": {"type": "string"}},
                    oip.LENGTH: {"description": "Bytes of the JSON part.", "schema": {"type": "string"}},
                },
            )[200],
            "content": {"application/json": _OBJECT, "application/octet-stream": _BYTES},
        },
        **refusals(
            "not_found", "inference_invalid", "bad_request", "too_large", "unsupported_media_type", "busy",
            "model_unavailable", "model_invalid", "artifact_damaged",
        ),
    },
    "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": _REQUEST}}}},
}  # fmt: skip


@router.post("/models/{name}/infer", **_INFER)
async def infer(name: schemas.ModelName, request: Request, site: Site, caller: ModelCaller) -> Response:
    """Run the version in production."""
    return await _infer(request, site, caller, name, None)


@router.post("/models/{name}/versions/{version}/infer", **_INFER)
async def infer_version(
    name: schemas.ModelName, version: VersionPath, request: Request, site: Site, caller: ModelCaller
) -> Response:
    """Run a version."""
    return await _infer(request, site, caller, name, _number(version))


async def _infer(request: Request, site: ServiceParts, caller: Identity, name: str, version: int | None) -> Response:
    key = caller.token_id if caller.token_id != "-" else client_address(request)  # whoever calls without a token
    async with site.intake.body(request, key) as raw:
        borrowing = borrowed(site, name, version)
        hosted = await to_thread.run_sync(borrowing.__enter__)
        try:
            return await _run_inference(request, site, key, hosted, raw)
        finally:
            borrowing.__exit__(None, None, None)


async def _run_inference(request: Request, site: ServiceParts, caller: str, hosted: Hosted, raw: bytes) -> Response:
    encoding, length = request.headers.get("content-encoding", "").lower(), request.headers.get(oip.LENGTH)
    limit, facts = site.settings.serve_max_mib << 20, hosted.session.facts

    def read() -> oip.InferenceRequest:
        body = oip.decompress(raw, encoding, limit)
        return oip.parse(
            body, length, facts.task, facts.channels, len(facts.classes), MOST_PIXELS, _most_images(facts.resolution)
        )

    inference_request = read() if len(raw) <= INLINE and not encoding else await to_thread.run_sync(read)
    results = await asyncio.wrap_future(hosted.submit(inference_request.images, list(inference_request.outputs), caller))
    accepted = request.headers.get("accept-encoding", "")

    def write() -> tuple[bytes, int | None, str | None]:
        body, json_length = oip.answer(hosted.name, hosted.version, inference_request, results)
        body, answer_encoding = oip.compress(body, accepted)
        return body, json_length, answer_encoding

    small = sum(values.nbytes for values in results.values()) <= INLINE >> 4
    body, json_length, answer_encoding = write() if small else await to_thread.run_sync(write)
    headers = {"X-Relay-Provider": hosted.session.provider}
    if json_length is not None:
        headers[oip.LENGTH] = str(json_length)
    if answer_encoding is not None:
        headers["Content-Encoding"] = answer_encoding
    return Response(
        body, headers=headers, media_type="application/json" if json_length is None else "application/octet-stream"
    )


def _most_images(resolution: int) -> int:
    """Return how many images one request may have, for a network that makes each of them so large."""
    return max(1, MOST_SEEN // resolution**2)


def _number(version: str) -> int | None:
    return None if version == "production" else int(version)


def _metadata(site: ServiceParts, name: str, version: str | None) -> dict[str, Any]:
    with site.database.read() as session:
        row = registry.version(session, name, None if version is None else _number(version))
        versions = session.scalars(select(Model.version).where(Model.name == name).order_by(Model.version)).all()
    facts, listed = row.facts["facts"], versions if version is None else [row.version]
    return oip.metadata(name, listed, registry.task_of(row), facts["channels"], len(facts["classes"]))


def _statistics(site: ServiceParts, name: str | None, version: str | None) -> dict[str, Any]:
    statement = select(Model.name, Model.version).order_by(Model.name, Model.version)
    with site.database.read() as session:
        if version is not None and name is not None:
            rows = [(name, registry.version(session, name, _number(version)).version)]
        else:
            rows = list(session.execute(statement.where(Model.name == name) if name else statement).tuples())
    if name is not None and not rows:
        raise Refusal("not_found", f"model {name} is not known here")
    return {"model_stats": [_version_statistics(site, *row) for row in rows]}


def _version_statistics(site: ServiceParts, name: str, version: int) -> dict[str, Any]:
    statistics = site.host.statistics(name, version)
    times = {key: vars(getattr(statistics, key)) for key in ("success", "fail", "queue")}
    return {
        "name": name, "version": str(version), "last_inference": statistics.last_ms, "inference_count": statistics.images,
        "execution_count": statistics.batches,
        "inference_stats": {**times, "compute_infer": vars(statistics.compute), "compute_input": {"count": 0, "ns": 0},
                            "compute_output": {"count": 0, "ns": 0}},
        "batch_stats": [],
    }  # fmt: skip
