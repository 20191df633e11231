"""`client.jobs`: purification jobs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from clients import _job_calls as calls
from clients._exceptions import WaitTimedOut
from clients._follow import EventStream
from clients._job_calls import JobSettings, awaits_approval, is_finished
from clients._transport import Transport
from server.schemas.jobs import Job, JobCheckpointList, JobEvent, JobEventList, JobList

PATIENCE = 120.0


class Jobs:
    """Creates jobs, shows and steers them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        training_file: str,
        *,
        validation_file: str | None = None,
        model: str = "default",
        settings: JobSettings | None = None,
        seed: int | None = None,
        suffix: str | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Creates a job that purifies a data set and heals the model on it.

        Args:
            training_file: Id of an upload, `dataset:NAME`, or `demo`.
            validation_file: A test set, likewise; None measures without one.
            model: The compromised checkpoint; `default` is the one that serves.
            settings: How, the object `method.disp`; what is left out keeps its default.
            seed: Every random choice follows from it; 0 by default.
            suffix: Part of the new checkpoint's name.
            metadata: Up to 16 texts of the caller's own.
            idempotency_key: A second request with the same key finds the first one's job. By
                default every call makes one up, so that its own retries make one job.

        Raises:
            InvalidInput: If a setting is unknown or of the wrong type.
            StatusError: If the server refuses.
            ConnectionFailed: If no answer comes.
        """
        call = calls.create(
            training_file,
            validation_file=validation_file,
            model=model,
            settings=settings,
            seed=seed,
            suffix=suffix,
            metadata=metadata,
            idempotency_key=idempotency_key,
        )
        return self._transport.run(call)

    def list(self, *, after: str | None = None, limit: int | None = None) -> JobList:
        """A page of jobs, newest first.

        Args:
            after: Id of the last one of the page before.
            limit: Most jobs on it; 20 by default.
        """
        return self._transport.run(calls.page(after, limit))

    def get(self, job_id: str) -> Job:
        """One job."""
        return self._transport.run(calls.get(job_id))

    def events(
        self,
        job_id: str,
        *,
        after: str | None = None,
        limit: int | None = None,
        order: Literal["asc", "desc"] | None = None,
    ) -> JobEventList:
        """A page of what happened, newest first unless `order` is `asc`.

        Args:
            job_id: The job.
            after: Id of the last event of the page before.
            limit: Most events on it; 20 by default.
            order: `asc` or `desc`.
        """
        return self._transport.run(calls.events(job_id, after, limit, order))

    def follow(
        self, job_id: str, *, after: str | None = None, patience: float = PATIENCE
    ) -> Iterator[JobEvent]:
        """Every event as it happens, until the job has finished; none is missed or given twice.

        A connection that breaks is opened again and goes on behind the last event.

        Args:
            job_id: The job.
            after: Id of the last event that is known already.
            patience: Seconds of pauses between connections that bring nothing, until the
                stream is given up.

        Raises:
            StatusError: If the server refuses.
            ConnectionFailed: If it does not come back in time.
        """
        return self._transport.follow(EventStream(job_id, after, patience))

    def wait(self, job_id: str, *, timeout: float | None = None, poll: float = 2.0) -> Job:
        """Waits until the job has finished, or stands still until somebody approves it.

        Args:
            job_id: The job.
            timeout: Seconds to wait at most; None waits for ever.
            poll: Seconds between two looks.

        Raises:
            WaitTimedOut: If the time is over; the job goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            job = self.get(job_id)
            if is_finished(job) or awaits_approval(job):
                return job
            if deadline is not None and time.monotonic() + poll > deadline:
                raise WaitTimedOut(
                    f"{job_id} is still {job.status} after {timeout:g} seconds; it goes on."
                )
            time.sleep(poll)

    def cancel(self, job_id: str) -> Job:
        """Ends a job for good."""
        return self._transport.run(calls.act(job_id, "cancel"))

    def pause(self, job_id: str) -> Job:
        """Stops a job; what is finished is kept."""
        return self._transport.run(calls.act(job_id, "pause"))

    def resume(self, job_id: str) -> Job:
        """Continues a paused or failed job where it stopped."""
        return self._transport.run(calls.act(job_id, "resume"))

    def approve(self, job_id: str) -> Job:
        """Lets a job that waits for it put its checkpoint into service."""
        return self._transport.run(calls.act(job_id, "approve"))

    def checkpoints(self, job_id: str) -> JobCheckpointList:
        """The checkpoint that a job made, if it has."""
        return self._transport.run(calls.checkpoints(job_id))

    def report(self, job_id: str) -> dict[str, Any]:
        """What the job did and what its evaluation found."""
        content = self._transport.run(calls.report(job_id, "json"))
        found: dict[str, Any] = json.loads(content)
        return found

    def report_page(self, job_id: str) -> bytes:
        """The same as one self-contained HTML page."""
        return self._transport.run(calls.report(job_id, "html"))
