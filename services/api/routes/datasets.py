"""Serve data sets, which are folders below the site's data root."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from sqlalchemy import Text, cast, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.api import options, pages, schemas
from services.api.deps import IfMatch, Operator, ServiceParts, Site, Viewer, check_version, etag
from services.api.docs import ETAG, LOCATION, changes, refusals, success
from services.api.pages import PageQuery
from services.api.streaming import Fetch, FileQuery, stored, whole
from services.site import ACTIVE, Refusal, artifacts, audit, folders, need
from services.site.db import Dataset, Job

router = APIRouter(prefix="/api/v1/datasets", tags=["data sets"])


@router.post(
    "",
    status_code=201,
    responses={
        **success(201, "Registered.", headers=LOCATION | ETAG),
        **changes("path_escape", "not_found", "name_taken", "data_invalid"),
    },
)
def register_dataset(body: schemas.DatasetRequest, site: Site, caller: Operator, response: Response) -> schemas.Dataset:
    """Register a folder; a preflight job looks into its files."""
    checked = options.check(body.layout, body.options)
    folder = folders.inside(site.settings.data_folder, body.path)
    path = folder.relative_to(site.settings.data_folder).as_posix()
    row = Dataset(name=body.name, path=path, layout=body.layout, options=checked, note=body.note)
    try:
        with site.database.write() as session:
            session.add(row)
            session.flush()
            audit.record(session, caller.actor, "dataset.register", row.id, name=row.name, path=path)
            dataset = schemas.Dataset.model_validate(row)
    except IntegrityError:
        raise Refusal("name_taken", f"there is a data set {body.name!r} already; choose another name") from None
    response.headers.update({"Location": f"{router.prefix}/{dataset.id}", "ETag": etag(dataset)})
    return dataset


@router.get("", responses=refusals("cursor_invalid"))
def list_datasets(
    site: Site, caller: Viewer, paging: PageQuery, name: Annotated[schemas.Words | schemas.Absent, Query()] = None
) -> schemas.Page[schemas.Dataset]:
    """Data sets, newest first."""
    with site.database.read() as session:
        rows, cursor = pages.read(session, site.settings.key, Dataset, paging, {"name": name}, [Dataset.id])
    return schemas.Page(items=[schemas.Dataset.model_validate(row) for row in rows], next_cursor=cursor)


@router.get("/{dataset_id}", responses={**success(200, "The data set.", headers=ETAG), **refusals("not_found")})
def get_dataset(dataset_id: schemas.DatasetId, site: Site, caller: Viewer, response: Response) -> schemas.Dataset:
    """One data set, with the report of its last preflight."""
    with site.database.read() as session:
        dataset = schemas.Dataset.model_validate(need(session, Dataset, dataset_id))
    response.headers["ETag"] = etag(dataset)
    return dataset


@router.patch(
    "/{dataset_id}",
    responses={
        **success(200, "The data set as it is now.", headers=ETAG),
        **changes("not_found", "precondition_required", "precondition_failed", "path_escape"),
    },
)
def change_dataset(
    dataset_id: schemas.DatasetId,
    body: schemas.DatasetChange,
    if_match: IfMatch,
    site: Site,
    caller: Operator,
    response: Response,
) -> schemas.Dataset:
    """Change a data set's note or its options."""
    with site.database.write() as session:
        row = _locked_row(session, dataset_id)
        check_version(row, if_match)
        changed: dict[str, Any] = {}
        if body.options is not None:
            changed["options"] = options.check(row.layout, body.options)
        if body.note is not None:
            changed["note"] = body.note
        for name, value in changed.items():
            setattr(row, name, value)
        if changed:
            row.version += 1
            session.flush()
            audit.record(session, caller.actor, "dataset.update", row.id, **changed)
        dataset = schemas.Dataset.model_validate(row)
    response.headers["ETag"] = etag(dataset)
    return dataset


@router.delete(
    "/{dataset_id}", status_code=204, responses=refusals("forbidden", "not_found", "in_use"),
)  # fmt: skip
def delete_dataset(dataset_id: schemas.DatasetId, site: Site, caller: Operator) -> None:
    """Forget a data set; its images stay where they are. Refused while a job that waits or runs names it."""
    with site.database.write() as session:
        row = _locked_row(session, dataset_id)
        names_dataset = cast(Job.params, Text).contains(row.id, autoescape=True)
        using_job = session.scalars(select(Job.id).where(Job.state.in_(ACTIVE), names_dataset).limit(1)).first()
        if using_job is not None:
            raise Refusal("in_use", f"{using_job} uses {row.name!r}; cancel it or wait for its end")
        artifacts.detach(session, row.id)
        session.delete(row)
        audit.record(session, caller.actor, "dataset.delete", row.id, name=row.name, path=row.path)


@router.get(
    "/{dataset_id}/preview",
    response_class=Response,
    responses={
        **whole("An image with its mask drawn over it.", "image/png"),
        **refusals("not_found", "preview_missing", "artifact_damaged"),
    },
)
def preview_dataset(
    dataset_id: schemas.DatasetId,
    site: Site,
    caller: Viewer,
    asked: FileQuery,
    index: Annotated[int, Query(ge=0, le=31, description="Which of the pictures that the preflight drew.")] = 0,
) -> Response:
    """A picture that the last preflight drew."""
    picture = _preview(site, dataset_id, index)
    return stored(site, picture, "image/png", asked, fetch=Fetch(caller, f"{dataset_id}/{index}"))


def _preview(site: ServiceParts, dataset_id: str, index: int) -> artifacts.Artifact:
    with site.database.read() as session:
        row = need(session, Dataset, dataset_id)
        pictures = artifacts.attached(session, row.id)
    if not pictures:
        raise Refusal("preview_missing", f"submit a job of kind preflight with dataset_id {dataset_id}, with previews")
    name = f"preview-{index:03d}.png"
    if name not in pictures:
        raise Refusal("not_found", f"index: the last preflight of {row.name!r} drew {len(pictures)} pictures")
    return pictures[name]


def _locked_row(session: Session, dataset_id: str) -> Dataset:
    row = session.get(Dataset, dataset_id, with_for_update=True)
    if row is None:
        raise Refusal("not_found", f"there is no dataset {dataset_id}")
    return row
