"""Jobs as rows: what was asked, how far it is, how it ended.

The row decides. A worker acts for one attempt of a job and asks here, between any two pieces
of work, whether that attempt still stands; cancelling or pausing changes the row and nothing
else.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, func, select, update

from server.errors import IdempotencyConflict, JobNotFound, JobStateConflict
from server.store.audit import Actor, append_row
from server.store.database import Database
from server.store.estimate import job_finish, stage_finish
from server.store.events import append_event
from server.store.file_tables import files, purified_folder
from server.store.job_tables import jobs, shards
from server.store.measures import measures_of, remaining
from server.store.outages import all_retried

JobStatus = Literal[
    "validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"
]

ACTIVE: tuple[JobStatus, ...] = ("queued", "validating_files", "running")
"""A worker works on it, or will."""
FINISHED: tuple[JobStatus, ...] = ("succeeded", "failed", "cancelled")

APPROVAL = "approval"
"""The stage of a paused job that waits for `JobStore.approve`."""


@dataclass(frozen=True)
class Progress:
    """How far the relabelling is, or the fine-tuning once it has begun.

    Attributes:
        rows_done: Rows relabelled, in finished shards and in those being worked on.
        rows_total: Rows of the plan; None before it.
        rows_per_second: Since this attempt began to relabel; None before its first rows.
        steps_done: Optimizer steps of the fine-tuning; None before it.
        steps_total: Steps it will take.
        stage_finish: Unix seconds at which the stage in progress ends at this pace; None where
            there is no pace yet.
        job_finish: The same of the whole job; None while any part of it has no pace yet.
    """

    rows_done: int = 0
    rows_total: int | None = None
    rows_per_second: float | None = None
    steps_done: int | None = None
    steps_total: int | None = None
    stage_finish: float | None = None
    job_finish: float | None = None


@dataclass(frozen=True)
class JobError:
    """Why a job failed, or what it waits for."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True)
class JobRecord:
    """One job.

    Attributes:
        id: `ftjob-` and 24 hex digits.
        number: Grows with creation; the order of lists.
        created_at: Unix seconds.
        finished_at: When it succeeded, failed or was cancelled.
        status: See `JobStatus`.
        stage: `plan`, `relabel`, `merge`, `tune`, `evaluate`, `stage`, `gate`, `activate`, or
            `approval` while it waits for a person; None before the first.
        attempt: Counts from 1 how often it was started or resumed.
        approved: Whether a person allowed its activation.
        key_id: Who asked.
        spec: What was asked, `JobSpec` as JSON values.
        sources: Where its inputs lie, `Sources` as JSON values; not for the API.
        progress: How far it is.
        result: Id of the new checkpoint, once it is staged.
        error: Why it failed or was paused by the service.
        last_event: Number of its newest event.
        result_files: Ids of the files of its purified data set, once it is written.
        trained_tokens: Answer tokens that the fine-tuning was trained on, each counted in every
            epoch; None before its end.
    """

    id: str
    number: int
    created_at: float
    finished_at: float | None
    status: JobStatus
    stage: str | None
    attempt: int
    approved: bool
    key_id: str | None
    spec: Mapping[str, Any]
    sources: Mapping[str, str | None]
    progress: Progress
    result: str | None
    error: JobError | None
    last_event: int
    result_files: tuple[str, ...] = ()
    trained_tokens: int | None = None

    @property
    def model(self) -> str:
        return str(self.spec["model"])

    @property
    def training_file(self) -> str:
        return str(self.spec["training_file"])

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


@all_retried
class JobStore:
    """The jobs table; what the API may do to a job."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        spec: Mapping[str, Any],
        sources: Mapping[str, str | None],
        *,
        key_id: str | None,
        idempotency_key: str | None = None,
    ) -> JobRecord:
        """Adds a job; the same key and idempotency key with the same spec find it again.

        Raises:
            IdempotencyConflict: If the idempotency key was used for another spec.
        """
        text = _canonical(spec)
        with self._database.transaction() as connection:
            if idempotency_key is not None:
                _lock_creation(connection)
                found = connection.execute(
                    select(jobs).where(
                        jobs.c.idempotency_key == idempotency_key,
                        jobs.c.key_id.is_not_distinct_from(key_id),
                    )
                ).first()
                if found is not None:
                    if found.spec != text:
                        raise IdempotencyConflict()
                    return _record(connection, found)
            job_id = f"ftjob-{secrets.token_hex(12)}"
            connection.execute(
                jobs.insert().values(
                    id=job_id,
                    created_at=time.time(),
                    status="queued",
                    attempt=1,
                    approved=False,
                    key_id=key_id,
                    idempotency_key=idempotency_key,
                    spec=text,
                    sources=_canonical(sources),
                    relabel_rows_before=0,
                    last_event=0,
                )
            )
            append_event(connection, job_id, "The job was created.")
            return _get(connection, job_id)

    def get(self, job_id: str) -> JobRecord:
        """One job.

        Raises:
            JobNotFound: If there is none of this id.
        """
        with self._database.reading() as connection:
            return _get(connection, job_id)

    def list(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        statuses: tuple[JobStatus, ...] | None = None,
        key_id: str | None = None,
    ) -> list[JobRecord]:
        """Jobs, newest first.

        Args:
            after: Id of the last job of the page before.
            limit: Most jobs returned.
            statuses: Only jobs in one of these.
            key_id: Only jobs that this key asked for.

        Raises:
            JobNotFound: If there is no job `after`.
        """
        query = select(jobs).order_by(jobs.c.number.desc()).limit(limit)
        if statuses is not None:
            query = query.where(jobs.c.status.in_(statuses))
        if key_id is not None:
            query = query.where(jobs.c.key_id == key_id)
        with self._database.reading() as connection:
            if after is not None:
                query = query.where(jobs.c.number < _get(connection, after).number)
            return [_record(connection, row) for row in connection.execute(query).all()]

    def cancel(self, job_id: str) -> JobRecord:
        """Ends a job; its workers stop after the batch in hand.

        Raises:
            JobNotFound: If there is none of this id.
            JobStateConflict: If it has finished.
        """
        return self._change(
            job_id,
            (*ACTIVE, "paused"),
            "cancelled",
            "The job was cancelled.",
            finished_at=time.time(),
        )

    def pause(self, job_id: str) -> JobRecord:
        """Stops a job after the batch in hand; what is finished is kept.

        Raises:
            JobNotFound: If there is none of this id.
            JobStateConflict: If it is not queued or running.
        """
        return self._change(job_id, ACTIVE, "paused", "The job was paused.")

    def resume(self, job_id: str) -> JobRecord:
        """Continues a paused or failed job from what is finished.

        Raises:
            JobNotFound: If there is none of this id.
            JobStateConflict: If it is neither paused nor failed, or waits for approval.
        """
        return self._change(
            job_id,
            ("paused", "failed"),
            "queued",
            "The job was resumed.",
            approval=False,
            **_NEXT_ATTEMPT,
        )

    def approve(self, job_id: str, actor: Actor) -> JobRecord:
        """Lets a job that waits for it activate its checkpoint; goes into the audit log.

        Raises:
            JobNotFound: If there is none of this id.
            JobStateConflict: If it does not wait for approval.
        """
        return self._change(
            job_id,
            ("paused",),
            "queued",
            "The activation was approved.",
            approval=True,
            approver=actor,
            approved=True,
            **_NEXT_ATTEMPT,
        )

    def _change(
        self,
        job_id: str,
        allowed: tuple[JobStatus, ...],
        status: JobStatus,
        message: str,
        *,
        approval: bool | None = None,
        approver: Actor | None = None,
        **values: Any,
    ) -> JobRecord:
        with self._database.transaction() as connection:
            job = _locked(connection, job_id)
            waits = job.status == "paused" and job.stage == APPROVAL
            if job.status not in allowed or (approval is not None and waits != approval):
                raise JobStateConflict(_refusal(job.status, waits, status, approval))
            connection.execute(
                update(jobs).where(jobs.c.id == job_id).values(status=status, **values)
            )
            append_event(connection, job_id, message, data={"status": status})
            if approver is not None:
                append_row(connection, approver, "approve_job", job_id, after=job.result)
            return _get(connection, job_id)


_NEXT_ATTEMPT: dict[str, Any] = {
    "attempt": jobs.c.attempt + 1,
    "finished_at": None,
    "error": None,
    "relabel_started_at": None,
    "relabel_finished_at": None,
    "tuning": None,
}


def _refusal(status: str, waits: bool, wanted: str, approval: bool | None) -> str:
    if approval:
        return f"The job does not wait for approval: it is {status}."
    if waits and wanted == "queued":
        return "The job waits for approval; approve it to activate its checkpoint."
    return f"The job is {status}; it cannot become {wanted}."


def _lock_creation(connection: Connection) -> None:
    """Two creations with one idempotency key wait for one another."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE")


def _locked(connection: Connection, job_id: str) -> Any:
    row = connection.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).first()
    if row is None:
        raise JobNotFound()
    return row


def _get(connection: Connection, job_id: str) -> JobRecord:
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).first()
    if row is None:
        raise JobNotFound()
    return _record(connection, row)


def _record(connection: Connection, row: Any) -> JobRecord:
    error = None if row.error is None else JobError(**json.loads(row.error))
    made = select(files.c.id).where(files.c.content == purified_folder(row.id))
    measured = measures_of(connection, row.id)
    return JobRecord(
        id=row.id,
        number=row.number,
        created_at=row.created_at,
        finished_at=row.finished_at,
        status=row.status,
        stage=row.stage,
        attempt=row.attempt,
        approved=row.approved,
        key_id=row.key_id,
        spec=json.loads(row.spec),
        sources=json.loads(row.sources),
        progress=_progress(connection, row, measured),
        result=row.result,
        error=error,
        last_event=row.last_event,
        result_files=tuple(connection.execute(made.order_by(files.c.number)).scalars()),
        trained_tokens=measured.get("trained_tokens"),
    )


def _progress(connection: Connection, row: Any, measured: Mapping[str, Any]) -> Progress:
    done = select(func.coalesce(func.sum(shards.c.rows_done), 0)).where(shards.c.job_id == row.id)
    rows_done = int(connection.execute(done).scalar_one())
    tuning = None if row.tuning is None else json.loads(row.tuning)
    now = time.time()
    rate = None
    if row.relabel_started_at is not None:
        elapsed = max((row.relabel_finished_at or now) - row.relabel_started_at, 1e-3)
        rate = (rows_done - row.relabel_rows_before) / elapsed or None
    finishes: tuple[float | None, float | None] = (None, None)
    if row.status in ACTIVE:
        rows = None if row.rows_total is None else row.rows_total - rows_done
        left = remaining(connection, row, measured, rows=rows, rate=rate, tuning=tuning)
        finishes = stage_finish(left, now), job_finish(left, now)
    return Progress(
        rows_done=rows_done,
        rows_total=row.rows_total,
        rows_per_second=rate,
        steps_done=None if tuning is None else tuning["steps_done"],
        steps_total=None if tuning is None else tuning["steps_total"],
        stage_finish=finishes[0],
        job_finish=finishes[1],
    )


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), sort_keys=True, separators=(",", ":"))
