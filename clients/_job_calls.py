"""What can be asked about purification jobs."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Literal, get_args
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from clients._call import Call, failure, invalid, reader
from clients._exceptions import InvalidInput, UnexpectedResponse
from server.schemas.job_settings import DispSettings
from server.schemas.jobs import (
    Job,
    JobCheckpointList,
    JobEvent,
    JobEventList,
    JobList,
    JobRequest,
    JobStatus,
)

JobSettings = DispSettings | Mapping[str, Any]
"""The object `method.disp` of a job; see docs/jobs.md."""
Action = Literal["cancel", "pause", "resume", "approve"]
ReportFormat = Literal["html", "json"]

FINISHED: tuple[JobStatus, ...] = ("succeeded", "failed", "cancelled")
APPROVAL = "approval"
"""The stage of a paused job that waits for `approve`."""

_JOBS = "/v1/fine_tuning/jobs"


def create(
    training_file: str,
    *,
    validation_file: str | None,
    model: str,
    settings: JobSettings | None,
    seed: int | None,
    suffix: str | None,
    metadata: Mapping[str, str] | None,
    idempotency_key: str | None,
) -> Call[Job]:
    """A new job. With its idempotency key it can be asked for twice and is made once.

    Raises:
        InvalidInput: If a field is unknown or of the wrong type.
    """
    given: dict[str, Any] = {
        "training_file": training_file,
        "validation_file": validation_file,
        "model": model,
        "method": {"type": "disp", "disp": dict(settings or {})},
        "seed": seed,
        "suffix": suffix,
        "metadata": None if metadata is None else dict(metadata),
    }
    given = {name: value for name, value in given.items() if value is not None}
    try:
        request = JobRequest.model_validate(given)
    except ValidationError as error:
        raise invalid(error) from None
    key = uuid.uuid4().hex if idempotency_key is None else idempotency_key
    if not (key and key.isascii() and key.isprintable()):
        raise InvalidInput("idempotency_key must be printable ASCII characters.")
    return Call(
        "POST",
        _JOBS,
        reader(Job),
        # What was given, `null` included: it may be a setting.
        request.model_dump(mode="json", exclude_unset=True),
        headers={"idempotency-key": key},
        repeatable=True,
    )


def page(after: str | None, limit: int | None) -> Call[JobList]:
    query = {"after": after, "limit": limit}
    return Call("GET", _JOBS, reader(JobList), query=query, repeatable=True)


def get(job_id: str) -> Call[Job]:
    return Call("GET", _path(job_id), reader(Job), repeatable=True)


def act(job_id: str, action: Action) -> Call[Job]:
    """Cancels, pauses, resumes or approves a job."""
    return Call("POST", f"{_path(job_id)}/{action}", reader(Job))


def checkpoints(job_id: str) -> Call[JobCheckpointList]:
    path = f"{_path(job_id)}/checkpoints"
    return Call("GET", path, reader(JobCheckpointList), repeatable=True)


def events(
    job_id: str, after: str | None, limit: int | None, order: Literal["asc", "desc"] | None
) -> Call[JobEventList]:
    query = {"after": after, "limit": limit, "order": order}
    path = f"{_path(job_id)}/events"
    return Call("GET", path, reader(JobEventList), query=query, repeatable=True)


def stream(job_id: str, last_event: str | None) -> Call[JobEvent]:
    """The stream of a job's events, behind the last one that was read."""
    headers = {"accept": "text/event-stream"}
    if last_event is not None:
        headers["last-event-id"] = last_event
    path = f"{_path(job_id)}/events"
    return Call("GET", path, reader(JobEvent), query={"stream": "true"}, headers=headers)


def report(job_id: str, kind: ReportFormat) -> Call[bytes]:
    """The report as the server has it.

    Raises:
        InvalidInput: If there is no such format.
    """
    if kind not in get_args(ReportFormat):
        raise InvalidInput(f"A report is {' or '.join(get_args(ReportFormat))}, not {kind!r}.")
    expected = {"html": "text/html", "json": "application/json"}[kind]

    def read(response: httpx.Response) -> bytes:
        if not response.is_success:
            raise failure(response)
        if not response.headers.get("content-type", "").startswith(expected):
            raise UnexpectedResponse(f"{response.url} did not answer with a report.")
        return response.content

    path = f"/v1/jobs/{quote(job_id, safe='')}/report"
    return Call("GET", path, read, query={"format": kind}, repeatable=True)


def is_finished(job: Job) -> bool:
    """Whether the job has ended, well or not."""
    return job.status in FINISHED


def awaits_approval(job: Job) -> bool:
    """Whether the job stands still until somebody calls `approve`."""
    return job.status == "paused" and job.stage == APPROVAL


def _path(job_id: str) -> str:
    return f"{_JOBS}/{quote(job_id, safe='')}"
