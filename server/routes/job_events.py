"""`/v1/fine_tuning/jobs/{id}/events`: pages, or a stream of server-sent events that resumes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Literal

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from server.chunks import DONE
from server.engine import Engine
from server.errors import DatabaseUnavailable, JobNotFound, NotFound
from server.job_answers import event_body, event_number
from server.jobs.service import Event, JobService
from server.routes.access import EngineHere, Require, ServicesHere, needed
from server.routes.description import events, refusals
from server.routes.jobs import seen
from server.routes.paging import After, cut
from server.schemas.jobs import JobEvent, JobEventList
from server.security.keys import Principal

router = APIRouter(prefix="/v1/fine_tuning/jobs")

POLL_SECONDS = 0.5
"""How often a stream looks for new events."""
QUIET_SECONDS = 15.0
"""After how long a stream without events says that it lives."""

_BATCH = 100


_STREAM = {
    "description": "A page of events, or with `stream` true all of them as they happen",
    "content": events(JobEvent, "The stream ends with the job."),
}


@router.get(
    "/{job_id}/events",
    response_model=JobEventList,
    responses={200: _STREAM, **refusals(JobNotFound, NotFound)},
)
async def list_events(
    job_id: str,
    principal: Annotated[Principal, Depends(Require("jobs:read"))],
    services: ServicesHere,
    engine: EngineHere,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 20,
    order: Literal["asc", "desc"] = "desc",
    stream: bool = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> JobEventList | Response:
    """Lists what happened, newest first unless `order` is `asc`, or streams it from the start."""
    jobs = needed(services.jobs)
    await run_sync(seen, jobs, job_id, principal)
    if stream:
        start = _start(job_id, after, last_event_id)
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return EventSourceResponse(_follow(jobs, engine, job_id, start), headers=headers)
    number = None if after is None else event_number(after, job_id, "after")
    return await run_sync(_page, jobs, job_id, number, limit, order)


def _page(
    jobs: JobService, job_id: str, after: int | None, limit: int, order: Literal["asc", "desc"]
) -> JobEventList:
    if order == "asc":
        found = jobs.events(job_id, after=after or 0, limit=limit + 1)
    else:
        found = jobs.newest_events(job_id, before=after, limit=limit + 1)
    page, more = cut([event_body(event) for event in found], limit)
    return JobEventList(data=page, has_more=more)


def _start(job_id: str, after: str | None, last_event_id: str | None) -> int:
    """Number of the last event that the reader has; what it resumes from goes first."""
    if last_event_id:
        return event_number(last_event_id, job_id, "Last-Event-ID")
    return 0 if after is None else event_number(after, job_id, "after")


async def _follow(
    jobs: JobService, engine: Engine, job_id: str, after: int
) -> AsyncIterator[bytes]:
    """Every event after one, as it happens, until the job has finished or the server stops."""
    quiet = 0.0
    while True:
        finished = False
        try:
            job = await run_sync(jobs.get, job_id)
            finished = job.finished and job.last_event <= after
            found = await run_sync(_after, jobs, job_id, after) if job.last_event > after else []
        except DatabaseUnavailable:
            found = []  # it may come back; whoever reads is kept
        for event in found:
            yield _encoded(event)
            after, quiet = event.number, 0.0
        if found:
            continue
        if finished:
            yield format_sse_event(data_str=DONE)
            return
        if engine.closing:
            return
        await anyio.sleep(POLL_SECONDS)
        quiet += POLL_SECONDS
        if quiet >= QUIET_SECONDS:
            yield KEEPALIVE_COMMENT
            quiet = 0.0


def _after(jobs: JobService, job_id: str, number: int) -> list[Event]:
    return list(jobs.events(job_id, after=number, limit=_BATCH))


def _encoded(event: Event) -> bytes:
    return format_sse_event(data_str=event_body(event).model_dump_json(), id=event.id)
