"""Jobs as the routes use them: rows of the database and files of the shared store.

Nothing here runs a job or knows the job engine. A created job is a row; the workers find it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from server.errors import JobStateConflict
from server.jobs.spec import JobSpec, Sources
from server.store.audit import Actor
from server.store.blobs import BlobStore
from server.store.database import Database
from server.store.events import Event, EventLog
from server.store.job_counts import JobCounter
from server.store.jobs import JobError, JobRecord, JobStatus, JobStore, Progress

__all__ = [
    "Event",
    "JobError",
    "JobRecord",
    "JobService",
    "JobStatus",
    "Progress",
    "report_key",
]

ReportKind = Literal["html", "json"]


def report_key(job_id: str, kind: ReportKind) -> str:
    """Where the shared store keeps a job's report."""
    return f"jobs/{job_id}/report/report.{kind}"


class JobService:
    """Creates, shows and steers jobs.

    Args:
        database: The service's database.
        store: What the workers share: shards, data sets, reports.
    """

    def __init__(self, database: Database, store: BlobStore) -> None:
        self._jobs = JobStore(database)
        self._events = EventLog(database)
        self._store = store
        self.counter = JobCounter(database)
        """Counts all jobs and their rows."""

    def create(
        self,
        spec: JobSpec,
        sources: Sources,
        *,
        key_id: str | None,
        idempotency_key: str | None = None,
        request_sha256: str | None = None,
        again_since: float | None = None,
    ) -> JobRecord:
        """Creates a job in status `queued`, or finds the one that the same request has made.

        Args:
            spec: What is asked.
            sources: Where the ids of the spec lie; the caller has looked them up.
            key_id: Who asks; idempotency keys are theirs alone.
            idempotency_key: A repetition of the request returns the job it made first.
            request_sha256: Hash of the request as it was sent.
            again_since: As for `JobStore.create`.

        Raises:
            IdempotencyConflict: If the idempotency key was used for another request.
        """
        return self._jobs.create(
            spec.to_stored(),
            sources.to_dict(),
            key_id=key_id,
            idempotency_key=idempotency_key,
            request_sha256=request_sha256,
            again_since=again_since,
        )

    def find(
        self, *, key_id: str | None, idempotency_key: str, request_sha256: str
    ) -> JobRecord | None:
        """The job that this very request made under this idempotency key, if there is one."""
        return self._jobs.find(
            key_id=key_id, idempotency_key=idempotency_key, request_sha256=request_sha256
        )

    def get(self, job_id: str) -> JobRecord:
        """One job.

        Raises:
            JobNotFound: If there is none of this id.
        """
        return self._jobs.get(job_id)

    def list(
        self, *, after: str | None = None, limit: int = 20, key_id: str | None = None
    ) -> Sequence[JobRecord]:
        """Jobs, newest first.

        Args:
            after: Id of the last job of the page before.
            limit: Most jobs returned.
            key_id: Only jobs that this key asked for.

        Raises:
            JobNotFound: If there is no job `after`.
        """
        return self._jobs.list(after=after, limit=limit, key_id=key_id)

    def events(self, job_id: str, *, after: int = 0, limit: int = 100) -> Sequence[Event]:
        """Events numbered above `after`, oldest first.

        Raises:
            JobNotFound: If there is no such job.
        """
        self._jobs.get(job_id)
        return self._events.read(job_id, after=after, limit=limit)

    def newest_events(
        self, job_id: str, *, before: int | None = None, limit: int = 100
    ) -> Sequence[Event]:
        """Events numbered below `before`, newest first.

        Raises:
            JobNotFound: If there is no such job.
        """
        self._jobs.get(job_id)
        return self._events.read_back(job_id, before=before, limit=limit)

    def cancel(self, job_id: str) -> JobRecord:
        """Ends a job; see `JobStore.cancel`."""
        return self._jobs.cancel(job_id)

    def pause(self, job_id: str) -> JobRecord:
        """Stops a job after the batch in hand; see `JobStore.pause`."""
        return self._jobs.pause(job_id)

    def resume(self, job_id: str) -> JobRecord:
        """Continues a paused or failed job; see `JobStore.resume`."""
        return self._jobs.resume(job_id)

    def approve(self, job_id: str, actor: Actor) -> JobRecord:
        """Lets a waiting job activate its checkpoint; see `JobStore.approve`."""
        return self._jobs.approve(job_id, actor)

    def report_file(self, job_id: str, kind: ReportKind) -> Path:
        """The job's report as a file of this machine.

        Raises:
            JobNotFound: If there is no such job.
            JobStateConflict: If its report is not written yet.
        """
        job = self._jobs.get(job_id)
        key = report_key(job_id, kind)
        if not self._store.exists(key):
            raise JobStateConflict(
                f"The job is {job.status} and has no report yet; it is written after the "
                "evaluation."
            )
        return self._store.local(key)
