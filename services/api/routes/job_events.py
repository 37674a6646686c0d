"""Serve what a job writes and leaves: events, process output, metrics and files."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import Field, WithJsonSchema
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from relay_core.errors import RelayError
from services.api import schemas, series
from services.api.deps import ServiceParts, Site, Viewer
from services.api.docs import refusals, success
from services.api.middleware import is_head
from services.api.streaming import Fetch, FileQuery, stored, whole
from services.site import TERMINAL, Identity, Refusal, artifacts, need
from services.site.db import Job, JobEvent

POLL = 0.5
"""The seconds between two queries for new events."""
BATCH = 500
"""The most events of one query for a stream."""
_LAST = 2**31 - 1
log = logging.getLogger(__name__)

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])

Step = Annotated[int, Field(ge=0, le=_LAST)]
After = Annotated[int, Query(ge=0, le=_LAST, description="Only events with a larger seq.")]


@dataclass(frozen=True)
class _Start:
    """Says which job's events to stream, and after which seq."""

    job_id: str
    after: int


def _stream_start(
    request: Request,
    caller: Viewer,
    site: Site,
    job_id: schemas.JobId,
    after: After = 0,
    last_event_id: Annotated[
        str | None,
        Header(alias="Last-Event-ID", description="Where a broken stream goes on; wins over `after`."),
        WithJsonSchema({"type": "string", "pattern": "^[0-9]{1,9}$"}),
    ] = None,
) -> _Start:
    if is_head(request.scope):  # an answer without an end says nothing of itself before it
        raise Refusal("method_not_allowed", "this address answers GET", {"Allow": "GET"})
    if last_event_id is not None and not re.fullmatch(r"[0-9]{1,9}", last_event_id):
        raise Refusal("bad_request", "Last-Event-ID is the seq of an event of this job")
    with site.database.read() as session:
        need(session, Job, job_id)
    return _Start(job_id, after if last_event_id is None else int(last_event_id))


@router.get(
    "/{job_id}/events",
    response_class=EventSourceResponse,
    responses={
        **success(200, "Events as they come, to the job's end."),
        **refusals("bad_request", "not_found"),
    },
)
async def stream_events(site: Site, start: Annotated[_Start, Depends(_stream_start)]) -> AsyncIterable[ServerSentEvent]:
    """Server-sent events: id is the seq, data the event as JSON. Ends when the job has ended and all is sent."""
    seq, ended = start.after, False
    while not ended:
        try:
            events, ended = await anyio.to_thread.run_sync(_next_events, site, start.job_id, seq, limiter=site.polls)
        except (SQLAlchemyError, RelayError) as error:
            log.warning("a stream of %s ends, its client comes again: %s", start.job_id, error)
            return
        for event in events:
            yield ServerSentEvent(id=str(event.seq), event=event.event, data=event)
            seq = event.seq
        if not events and not ended:
            await anyio.sleep(POLL)


def _next_events(site: ServiceParts, job_id: str, after: int) -> tuple[list[schemas.Event], bool]:
    """Return the events after the seq `after`, and whether they are the last that will come."""
    with site.database.read() as session:
        job = session.execute(select(Job.state, Job.events).where(Job.id == job_id)).one()
        events = _events(session, job_id, after, BATCH)
    last_seq = events[-1].seq if events else after
    return events, job.state in TERMINAL and last_seq >= job.events


def _events(session: Session, job_id: str, after: int, limit: int) -> list[schemas.Event]:
    rows = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > after).order_by(JobEvent.seq).limit(limit)
    return [
        schemas.Event.model_validate({**row.data, "seq": row.seq, "at": row.at, "attempt": row.attempt})
        for row in session.scalars(rows)
    ]


@router.get("/{job_id}/events.json", responses=refusals("not_found"))
def list_events(
    job_id: schemas.JobId,
    site: Site,
    caller: Viewer,
    after: After = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> schemas.EventPage:
    """The events that a job has so far, in order."""
    with site.database.read() as session:
        total = need(session, Job, job_id).events
        events = _events(session, job_id, after, limit)
    more = bool(events) and events[-1].seq < total
    return schemas.EventPage(items=events, next_after=events[-1].seq if more else None)


@router.get(
    "/{job_id}/log",
    response_class=PlainTextResponse,
    responses={
        **success(200, "Lines of the training process.", media_type="text/plain", schema={"type": "string"}),
        **refusals("not_found"),
    },
)
def tail_log(
    job_id: schemas.JobId,
    site: Site,
    caller: Viewer,
    tail: Annotated[int, Query(ge=1, le=10_000, description="How many of the last lines.")] = 200,
) -> PlainTextResponse:
    """The last lines that the job's process wrote besides its events."""
    is_line = JobEvent.data["event"].as_string() == "log"
    newest = select(JobEvent.data).where(JobEvent.job_id == job_id, is_line).order_by(JobEvent.seq.desc()).limit(tail)
    with site.database.read() as session:
        need(session, Job, job_id)
        lines = [str(data.get("line", "")) for data in session.scalars(newest)]
    return PlainTextResponse("".join(f"{line}\n" for line in reversed(lines)))


@router.get("/{job_id}/metrics", responses=refusals("not_found"))
def get_metrics(
    job_id: schemas.JobId,
    site: Site,
    caller: Viewer,
    name: Annotated[schemas.Words | schemas.Absent, Query(description="Only this metric.")] = None,
    site_name: Annotated[schemas.Words | schemas.Absent, Query(alias="site", description="Only this site's.")] = None,
    points: Annotated[
        int, Query(ge=1, le=10_000, description="At most so many points of a series: the extremes of each stretch of it.")
    ] = 1000,
    first: Annotated[Step | schemas.Absent, Query(description="Only from this step on: to look closer, or page on.")] = None,
    last: Annotated[Step | schemas.Absent, Query(description="Only up to this step.")] = None,
    every: Annotated[
        Annotated[int, Field(ge=1, le=10_000)] | schemas.Absent,
        Query(description="Instead of points: at most so many, evenly spaced, whatever lies between them."),
    ] = None,
) -> list[schemas.Series]:
    """Losses, scores and speed over the steps. Of a long series come the lowest and the highest point of each stretch, so
    that no spike is hidden, and the newest point.

    With `first` and `last` only the steps between them: for every single point, ask for 10,000 steps at a time.
    """
    asked = series.conditions(job_id, {"name": name, "site": site_name}, first, last)
    with site.database.read() as session:
        need(session, Job, job_id)
        if every is None:
            return series.points(session, asked, points)
        return series.collect(session.execute(series.evenly(asked, every)))


@router.get("/{job_id}/files", responses=refusals("forbidden", "not_found"))
def list_files(job_id: schemas.JobId, site: Site, caller: Viewer) -> list[schemas.StoredFile]:
    """The files that the job left."""
    return [
        schemas.StoredFile(name=name, size=file.size, media_type=file.media_type, digest=file.digest)
        for name, file in _files(site, job_id, caller).items()
    ]


@router.get(
    "/{job_id}/files/{name}",
    response_class=Response,
    responses={
        **whole("The file, of the type that the list says.", "*/*"),
        **refusals("forbidden", "not_found", "artifact_damaged"),
    },
)
def get_file(job_id: schemas.JobId, name: str, site: Site, caller: Viewer, asked: FileQuery) -> Response:
    """One file that the job left; its bytes are verified while they are sent."""
    file = _files(site, job_id, caller).get(name)
    if file is None:
        raise Refusal("not_found", f"{job_id} left no such file; see {router.prefix}/{job_id}/files")
    return stored(site, file, file.media_type, asked, name, Fetch(caller, f"{job_id}/{name}"))


def _files(site: ServiceParts, job_id: str, caller: Identity) -> dict[str, artifacts.Artifact]:
    """Return the files of a job; those of a study, which are a patient's, go to whoever sent it, and to operators.

    So do those of a privacy audit, which show training images.
    """
    with site.database.read() as session:
        job = need(session, Job, job_id)
        if job.kind in ("predict_study", "privacy_audit") and job.created_by != caller.actor:
            caller.require("operator")
        return artifacts.attached(session, job.id)
