"""Serve models: their versions, and which of them is in production; `predictions` serves what they see in an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Body, Query, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.api import pages, schemas
from services.api.conditional import names
from services.api.deps import IfMatch, Operator, Site, Viewer
from services.api.docs import ETAG, SIGNERS, Responses, changes, refusals, success
from services.api.pages import PageQuery
from services.api.streaming import Fetch, PartQuery, in_parts, stored
from services.site import Refusal, registry
from services.site.db import Artifact, Model, Promotion

router = APIRouter(prefix="/api/v1/models", tags=["models"])


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
        **in_parts("The ONNX file.", registry.MEDIA_TYPE),
        **refusals("forbidden", "not_found", "artifact_damaged", "range_not_satisfiable"),
    },
)
def download_model(
    name: schemas.ModelName, version: schemas.Version, site: Site, caller: Operator, asked: PartQuery
) -> Response:
    """Download a version's ONNX file, with its facts in the metadata."""
    with site.database.read() as session:
        row = registry.version(session, name, version)
        artifact = session.get_one(Artifact, row.digest)
    return stored(site, artifact, registry.MEDIA_TYPE, asked, f"{name}-{version}.onnx", Fetch(caller, f"{name}/{version}"))


@router.delete("/{name}/versions/{version}", status_code=204, responses=refusals("forbidden", "not_found", "in_use"))
def delete_model(name: schemas.ModelName, version: schemas.Version, site: Site, caller: Operator) -> None:
    """Delete a version. Refused while it is in production, or was before the present one."""
    with site.database.write() as session:
        registry.delete(session, name, version, caller.actor)
    site.host.drop(name, version)


_CHANGED: Responses = {
    **success(200, "What is in production now.", headers=ETAG),
    **changes("not_found", "conflict", *SIGNERS, "reason_missing", "precondition_required", "precondition_failed"),
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


def _check_etag(session: Session, name: str, if_match: str) -> None:
    promotion = registry.production(session, name)
    current_etag = f'"{promotion.number if promotion else 0}"'
    if not names(if_match, current_etag, weakly=False):
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
