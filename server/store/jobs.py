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
from typing import Any

from sqlalchemy import Connection, select, update

from server.errors import IdempotencyConflict, JobNotFound, JobStateConflict
from server.store.audit import Actor, append_row
from server.store.database import Database
from server.store.events import append_event
from server.store.job_records import (
    ACTIVE,
    APPROVAL,
    FINISHED,
    JobError,
    JobRecord,
    JobStatus,
    Progress,
    record_of,
)
from server.store.job_tables import jobs
from server.store.outages import all_retried

__all__ = [
    "ACTIVE",
    "APPROVAL",
    "FINISHED",
    "JobError",
    "JobRecord",
    "JobStatus",
    "JobStore",
    "Progress",
]

_SEARCHED = 20


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
        request_sha256: str | None = None,
        again_since: float | None = None,
    ) -> JobRecord:
        """Adds a job, or finds the one that the same request has made.

        Requests are the same if their hashes or their specs are equal.

        Args:
            spec: What is asked.
            sources: Where its inputs lie.
            key_id: Who asks.
            idempotency_key: Finds the job that this key was sent with, however long ago.
            request_sha256: Hash of the request as it was sent.
            again_since: Without an idempotency key: finds a job made since this time, in Unix
                seconds; None makes a new one.

        Raises:
            IdempotencyConflict: If the idempotency key was used for another request.
        """
        text = _canonical(spec)
        with self._database.transaction() as connection:
            found = None
            if idempotency_key is not None:
                _lock_creation(connection)
                found = _with_key(connection, key_id, idempotency_key)
                if found is not None and not _same(found, text, request_sha256):
                    raise IdempotencyConflict()
            elif again_since is not None:
                _lock_creation(connection)
                found = _made_since(connection, key_id, again_since, text, request_sha256)
            if found is not None:
                return record_of(connection, found)
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
                    request_sha256=request_sha256,
                    spec=text,
                    sources=_canonical(sources),
                    relabel_rows_before=0,
                    last_event=0,
                )
            )
            append_event(connection, job_id, "The job was created.")
            return _get(connection, job_id)

    def find(
        self, *, key_id: str | None, idempotency_key: str, request_sha256: str
    ) -> JobRecord | None:
        """The job that this request made under this idempotency key, if it is known by its hash."""
        with self._database.reading() as connection:
            found = _with_key(connection, key_id, idempotency_key)
            if found is None or found.request_sha256 != request_sha256:
                return None
            return record_of(connection, found)

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
            return [record_of(connection, row) for row in connection.execute(query).all()]

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


def _with_key(connection: Connection, key_id: str | None, idempotency_key: str) -> Any:
    query = select(jobs).where(
        jobs.c.idempotency_key == idempotency_key, jobs.c.key_id.is_not_distinct_from(key_id)
    )
    return connection.execute(query).first()


def _made_since(
    connection: Connection, key_id: str | None, since: float, text: str, request: str | None
) -> Any:
    query = select(jobs).where(
        jobs.c.created_at >= since, jobs.c.key_id.is_not_distinct_from(key_id)
    )
    rows = connection.execute(query.order_by(jobs.c.number.desc()).limit(_SEARCHED))
    return next((row for row in rows if _same(row, text, request)), None)


def _same(row: Any, text: str, request: str | None) -> bool:
    return row.spec == text or (request is not None and row.request_sha256 == request)


def _locked(connection: Connection, job_id: str) -> Any:
    row = connection.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).first()
    if row is None:
        raise JobNotFound()
    return row


def _get(connection: Connection, job_id: str) -> JobRecord:
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).first()
    if row is None:
        raise JobNotFound()
    return record_of(connection, row)


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), sort_keys=True, separators=(",", ":"))
