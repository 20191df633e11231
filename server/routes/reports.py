"""`GET /v1/jobs/{id}/report`: what a job's evaluation found, as a page or as JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header

from server.errors import JobNotFound, JobStateConflict, RangeNotSatisfiable
from server.routes.access import Require, ServicesHere, needed
from server.routes.description import content, refusals
from server.routes.jobs import seen
from server.routes.stored_file import StoredFile
from server.security.keys import Principal

router = APIRouter(prefix="/v1/jobs")

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; sandbox"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "vary": "accept",
}
"""The page shows labels and answers that an attacker chose: nothing in it may run or load."""

_TYPES = {"html": "text/html; charset=utf-8", "json": "application/json"}


_KINDS: dict[str, dict[str, str]] = {
    "text/html": {"type": "string"},
    "application/json": {"type": "object"},
}
_PARTS: dict[str, dict[str, str]] = {
    "text/html": {"type": "string"},
    "application/json": {"type": "string"},
}


@router.get(
    "/{job_id}/report",
    response_class=StoredFile,
    responses={
        200: content(_KINDS, "The report"),
        206: content(_PARTS, "The range of it that the header `range` asked for"),
        **refusals(JobNotFound, JobStateConflict, RangeNotSatisfiable),
    },
)
def get_report(
    job_id: str,
    principal: Annotated[Principal, Depends(Require("jobs:read"))],
    services: ServicesHere,
    format: Literal["html", "json"] | None = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> StoredFile:
    """Shows the report; HTML for who accepts it, else JSON, unless `format` says which."""
    jobs = needed(services.jobs)
    record = seen(jobs, job_id, principal)
    kind = format or ("html" if "text/html" in accept.lower() else "json")
    return StoredFile(jobs.report_file(record.id, kind), media_type=_TYPES[kind], headers=HEADERS)
