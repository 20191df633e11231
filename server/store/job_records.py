"""One job as the rest of the service sees it, read from its rows."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, func, select

from server.store.estimate import job_finish, stage_finish
from server.store.file_tables import files, purified_folder
from server.store.job_tables import shards
from server.store.measures import measures_of, remaining

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


def record_of(connection: Connection, row: Any) -> JobRecord:
    """The record of a row of `jobs`, inside a transaction."""
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
