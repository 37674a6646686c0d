"""Serve runs, whose run file the sites of a relay share."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from services.api import pages, schemas
from services.api.deps import IfMatch, Operator, Site, Viewer, check_version, etag
from services.api.docs import ETAG, LOCATION, changes, refusals, success
from services.api.pages import PageQuery
from services.site import Refusal, audit, need, runs
from services.site.db import Run

MAX_FILE = 1 << 20
"""The most bytes of a run file."""
TYPES = ("application/yaml", "text/yaml", "application/x-yaml", "text/plain")
_MAPPING = {"schema": {"type": "object"}, "example": {"extends": "fundus-cpu"}}
_TEXT = {"schema": {"type": "string"}, "example": "extends: fundus-cpu\n"}
_FILE = {kind: _TEXT if kind == "text/plain" else _MAPPING for kind in TYPES}

router = APIRouter(prefix="/api/v1/runs", tags=["runs"])
previews = APIRouter(prefix="/api/v1/run-previews", tags=["runs"])


async def _run_file(request: Request) -> str:
    """Return the request's body, a run file, as text."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in TYPES:
        raise Refusal("unsupported_media_type", f"send the run file itself as {', '.join(TYPES)}")
    body = await request.body()
    if len(body) > MAX_FILE:
        raise Refusal("too_large", f"a run file may have {MAX_FILE} bytes")
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise Refusal("bad_request", "the run file is not UTF-8") from None


@router.post(
    "",
    status_code=201,
    responses={
        **success(201, "Registered.", headers=LOCATION | ETAG),
        200: {"description": "Known already.", "model": schemas.Run, "headers": LOCATION | ETAG},
        **changes("run_file_invalid", "path_escape"),
    },
    openapi_extra={"requestBody": {"required": True, "content": _FILE}},
)
def register_run(
    caller: Operator,
    text: Annotated[str, Depends(_run_file)],
    site: Site,
    response: Response,
    name: Annotated[schemas.Name, Query(description="What people call it.")] = "run",
) -> schemas.Run:
    """Register a run file, given as the body itself. Its id is the same at every site of the relay."""
    parsed = runs.read(text, name)
    with site.database.write() as session:
        row, is_new = runs.keep(session, parsed, caller.actor)
        run = schemas.Run.model_validate(row)
    response.status_code = 201 if is_new else 200
    response.headers.update({"Location": f"{router.prefix}/{run.id}", "ETag": etag(run)})
    return run


@previews.post(
    "",
    responses=changes("run_file_invalid", "path_escape"),
    openapi_extra={"requestBody": {"required": True, "content": _FILE}},
)
def preview_run(
    caller: Operator,
    text: Annotated[str, Depends(_run_file)],
    name: Annotated[schemas.Name, Query(description="What people would call it.")] = "run",
) -> schemas.RunPreview:
    """Check a run file without registering it: what it would be, in canonical form."""
    row = runs.read(text, name)
    return schemas.RunPreview(
        id=row.id, name=row.name, strategy=row.strategy, text=row.content, notes=runs.run_file(row).notes,
        sites=[schemas.RunSite(**entry) for entry in row.sites],
    )  # fmt: skip


@router.get("", responses=refusals("cursor_invalid"))
def list_runs(site: Site, caller: Viewer, paging: PageQuery) -> schemas.Page[schemas.Run]:
    """Runs, newest first."""
    with site.database.read() as session:
        rows, cursor = pages.read(session, site.settings.key, Run, paging, {}, [Run.created_at, Run.id])
    return schemas.Page(items=[schemas.Run.model_validate(row) for row in rows], next_cursor=cursor)


@router.get("/{run_id}", responses={**success(200, "The run.", headers=ETAG), **refusals("not_found")})
def get_run(run_id: schemas.RunId, site: Site, caller: Viewer, response: Response) -> schemas.Run:
    """One run."""
    with site.database.read() as session:
        run = schemas.Run.model_validate(need(session, Run, run_id))
    response.headers["ETag"] = etag(run)
    return run


@router.get(
    "/{run_id}/file",
    response_class=Response,
    responses={
        **success(200, "The run file.", media_type="application/yaml", schema={"type": "object"}, headers=ETAG),
        **refusals("not_found"),
    },
)
def get_run_file(run_id: schemas.RunId, site: Site, caller: Viewer) -> Response:
    """A run's file in canonical form: it extends nothing and gives the same id at any site."""
    with site.database.read() as session:
        text = need(session, Run, run_id).content
    return Response(text, media_type="application/yaml", headers={"ETag": f'"{run_id}"'})


@router.patch(
    "/{run_id}",
    responses={
        **success(200, "The run as it is now.", headers=ETAG),
        **changes("not_found", "precondition_required", "precondition_failed"),
    },
)
def change_run(
    run_id: schemas.RunId, body: schemas.RunChange, if_match: IfMatch, site: Site, caller: Operator, response: Response
) -> schemas.Run:
    """Say which hop of the relay this site is."""
    with site.database.write() as session:
        row = session.get(Run, run_id, with_for_update=True)
        if row is None:
            raise Refusal("not_found", f"there is no run {run_id}")
        check_version(row, if_match)
        trained = [entry["task_id"] for entry in row.sites if entry["trained"]]
        if body.site is not None and body.site not in trained:
            raise Refusal("invalid_request", f"site: the run's sites are {', '.join(map(str, trained))}")
        if body.site != row.site:
            row.site = body.site
            row.version += 1
            session.flush()
            audit.record(session, caller.actor, "run.site", row.id, site=body.site)
        run = schemas.Run.model_validate(row)
    response.headers["ETag"] = etag(run)
    return run
