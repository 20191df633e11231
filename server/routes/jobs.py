"""`/v1/fine_tuning/jobs`: creates, shows and steers purification jobs."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response

from server.errors import (
    CheckpointNotFound,
    DataFileNotFound,
    IdempotencyConflict,
    InvalidRequest,
    InvalidSetting,
    JobNotFound,
    JobStateConflict,
    ModelNotFound,
    NotFound,
    ScopeMissing,
    UnusableDataSet,
)
from server.job_answers import checkpoint_body, job_body
from server.job_requests import spec_of
from server.jobs.service import JobRecord, JobService
from server.jobs.spec import JobSpec, Sources
from server.routes.access import (
    RequestId,
    Require,
    ServicesHere,
    json_only,
    needed,
    owner_of,
)
from server.routes.description import refusals
from server.routes.paging import After, cut
from server.schemas.jobs import Job, JobCheckpointList, JobList, JobRequest
from server.security.keys import Principal
from server.services import Services
from server.store.audit import Actor
from server.store.checkpoint_tables import CheckpointRecord
from server.store.checkpoints import CheckpointStore

router = APIRouter(prefix="/v1/fine_tuning/jobs")

Reader = Annotated[Principal, Depends(Require("jobs:read"))]
Writer = Annotated[Principal, Depends(Require("jobs:write"))]

_NONE = refusals(JobNotFound)
_CONFLICT = refusals(JobNotFound, JobStateConflict)

_RETRY_SECONDS = 900
"""How long ago the `openai` package may have sent what it repeats, without an idempotency key."""
_LONGEST_KEY = 255


_LOCATION = {
    "description": "The job",
    "headers": {"location": {"description": "Its address.", "schema": {"type": "string"}}},
}


@router.post(
    "",
    status_code=202,
    dependencies=[Depends(json_only)],
    responses={
        202: _LOCATION,
        **refusals(
            NotFound,
            ModelNotFound,
            DataFileNotFound,
            UnusableDataSet,
            InvalidSetting,
            IdempotencyConflict,
        ),
    },
)
def create(
    body: JobRequest,
    response: Response,
    principal: Writer,
    services: ServicesHere,
    idempotency_key: Annotated[str | None, Header()] = None,
    retry_count: Annotated[
        str, Header(alias="x-stainless-retry-count", include_in_schema=False)
    ] = "0",
) -> Job:
    """Creates a job, or finds the one that the same request made before."""
    jobs = needed(services.jobs)
    _check_key(idempotency_key)
    if body.method.disp.get("activate") == "auto" and "models:admin" not in principal.scopes:
        raise ScopeMissing(
            "activate auto puts a checkpoint into service, for which this key lacks the scope "
            "models:admin; ask for approval or never.",
            param="method.disp.activate",
        )
    key_id, sent = principal.key_id, _hash(body)
    record = None
    if idempotency_key is not None:
        # What the request names may be gone or another one by now; its job is the same.
        record = jobs.find(key_id=key_id, idempotency_key=idempotency_key, request_sha256=sent)
    if record is None:
        spec, sources = _plan(body, principal, services)
        record = jobs.create(
            spec,
            sources,
            key_id=key_id,
            idempotency_key=idempotency_key,
            request_sha256=sent,
            again_since=None if retry_count == "0" else time.time() - _RETRY_SECONDS,
        )
    response.headers["location"] = f"{router.prefix}/{record.id}"
    return job_body(record)


@router.get("", responses=refusals(NotFound, JobNotFound))
def list_jobs(
    principal: Reader,
    services: ServicesHere,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> JobList:
    """Lists jobs, newest first."""
    jobs = needed(services.jobs)
    if after is not None:
        seen(jobs, after, principal)
    found = jobs.list(after=after, limit=limit + 1, key_id=owner_of(principal))
    page, more = cut([job_body(record) for record in found], limit)
    return JobList(data=page, has_more=more)


@router.get("/{job_id}", responses=_NONE)
def get_job(job_id: str, principal: Reader, services: ServicesHere) -> Job:
    """Shows one job."""
    return job_body(seen(needed(services.jobs), job_id, principal))


@router.post("/{job_id}/cancel", responses=_CONFLICT)
def cancel(job_id: str, principal: Writer, services: ServicesHere) -> Job:
    """Ends a job for good."""
    jobs = needed(services.jobs)
    return job_body(jobs.cancel(seen(jobs, job_id, principal).id))


@router.post("/{job_id}/pause", responses=_CONFLICT)
def pause(job_id: str, principal: Writer, services: ServicesHere) -> Job:
    """Stops a job; what is finished is kept."""
    jobs = needed(services.jobs)
    return job_body(jobs.pause(seen(jobs, job_id, principal).id))


@router.post("/{job_id}/resume", responses=_CONFLICT)
def resume(job_id: str, principal: Writer, services: ServicesHere) -> Job:
    """Continues a paused or failed job."""
    jobs = needed(services.jobs)
    return job_body(jobs.resume(seen(jobs, job_id, principal).id))


@router.post("/{job_id}/approve", responses=_CONFLICT)
def approve(
    job_id: str,
    principal: Annotated[Principal, Depends(Require("models:admin"))],
    services: ServicesHere,
    request_id: RequestId,
) -> Job:
    """Lets a job that waits for it activate its checkpoint; written to the audit log."""
    actor = Actor(principal.name, principal.key_id, request_id)
    return job_body(needed(services.jobs).approve(job_id, actor))


@router.get("/{job_id}/checkpoints", responses=_NONE)
def list_checkpoints(job_id: str, principal: Reader, services: ServicesHere) -> JobCheckpointList:
    """Shows the checkpoint that a job made, if it has and nobody has deleted it."""
    record = seen(needed(services.jobs), job_id, principal)
    none = JobCheckpointList(data=[], first_id=None, last_id=None)
    if record.result is None:
        return none
    try:
        made = checkpoint_body(needed(services.checkpoints).get(record.result), record)
    except CheckpointNotFound:
        return none
    return JobCheckpointList(data=[made], first_id=made.id, last_id=made.id)


def seen(jobs: JobService, job_id: str, principal: Principal) -> JobRecord:
    """A job, if this key may know of it.

    Raises:
        JobNotFound: If there is none of this id, or it is another key's.
    """
    record = jobs.get(job_id)
    if owner_of(principal) not in (None, record.key_id):
        raise JobNotFound
    return record


def _plan(body: JobRequest, principal: Principal, services: Services) -> tuple[JobSpec, Sources]:
    model = _model(body.model, needed(services.checkpoints))
    datasets, owner = needed(services.datasets), owner_of(principal)
    data = datasets.find(body.training_file, "training_file", owner=owner)
    test = None
    if body.validation_file is not None:
        test = datasets.find(body.validation_file, "validation_file", owner=owner)
    spec = spec_of(body, model=model.id, attack=test.attack if test else None)
    sources = Sources(
        model=model.path,
        data=data.path,
        images=data.images,
        test=test.path if test else None,
        test_images=test.images if test else None,
    )
    return spec, sources


def _model(name: str, checkpoints: CheckpointStore) -> CheckpointRecord:
    active = checkpoints.active()
    if active is not None and name in ("default", active.name):
        return active
    try:
        return checkpoints.get(name)
    except CheckpointNotFound:
        raise ModelNotFound(
            "No such checkpoint is known here; GET /v1/checkpoints lists them, and 'default' is "
            "the one that serves.",
            param="model",
        ) from None


def _check_key(key: str | None) -> None:
    if key is not None and not (0 < len(key) <= _LONGEST_KEY and key.isprintable()):
        raise InvalidRequest(
            f"Idempotency-Key must have 1 to {_LONGEST_KEY} printable characters.",
            param="Idempotency-Key",
        )


def _hash(body: JobRequest) -> str:
    """Of a request as it was sent, whatever the order of its fields; SHA-256 in hex."""
    text = json.dumps(body.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
