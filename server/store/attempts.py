"""Jobs from their workers' side: what an attempt may still do, and what it has done.

Every change names the attempt it was made for. Once the job was cancelled, paused or resumed
under a later attempt, the change is refused by `AttemptOver`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, select, update

from server.store.database import Database
from server.store.events import EventType, append_event
from server.store.job_tables import jobs, shards, starts
from server.store.jobs import ACTIVE, APPROVAL, JobError, JobStatus
from server.store.measures import note
from server.store.outages import all_retried


class AttemptOver(Exception):
    """The job was cancelled, paused or has gone on under a later attempt."""


@dataclass(frozen=True)
class Attempt:
    """One attempt of one job."""

    job_id: str
    number: int


@all_retried
class Attempts:
    """What workers write about jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def waiting(self, version: int) -> list[Attempt]:
        """Attempts that nobody has handed to the job engine yet.

        An attempt that was handed over for an older pipeline than `version` is followed by a
        new one, which keeps what is finished.
        """
        query = (
            select(jobs.c.id, jobs.c.attempt, jobs.c.dispatched, jobs.c.pipeline)
            .where(jobs.c.status.in_(ACTIVE))
            .order_by(jobs.c.number)
        )
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        found = []
        for row in rows:
            attempt = Attempt(row.id, row.attempt)
            if row.dispatched != row.attempt:
                found.append(attempt)
            elif row.pipeline is not None and row.pipeline < version:
                found += self._following(attempt)
        return found

    def _following(self, attempt: Attempt) -> list[Attempt]:
        """The attempt after one, unless somebody else has begun that meanwhile."""
        following = Attempt(attempt.job_id, attempt.number + 1)
        with self._database.transaction() as connection:
            change = update(jobs).where(
                jobs.c.id == attempt.job_id,
                jobs.c.attempt == attempt.number,
                jobs.c.status.in_(ACTIVE),
            )
            if connection.execute(change.values(attempt=following.number)).rowcount == 0:
                return []
            append_event(
                connection, attempt.job_id, "The job goes on under a newer version of the service."
            )
        return [following]

    def dispatched(self, attempt: Attempt, version: int) -> None:
        """Notes that the job engine has an attempt."""
        with self._database.transaction() as connection:
            connection.execute(
                update(jobs)
                .where(jobs.c.id == attempt.job_id, jobs.c.attempt == attempt.number)
                .values(dispatched=attempt.number, pipeline=version)
            )

    def stands(self, attempt: Attempt) -> bool:
        """Whether the attempt is still wanted."""
        with self._database.reading() as connection:
            row = connection.execute(
                select(jobs.c.status, jobs.c.attempt).where(jobs.c.id == attempt.job_id)
            ).first()
        return row is not None and row.attempt == attempt.number and row.status in ACTIVE

    def start(self, attempt: Attempt, step: str, stage: str, status: JobStatus) -> int:
        """Counts that a step is begun, before anything of it is done.

        Args:
            attempt: Whose.
            step: The step, such as `relabel-00042`.
            stage: The job's stage from now on.
            status: The job's status from now on.

        Returns:
            How often it was begun in this attempt, this time included.

        Raises:
            AttemptOver: If the attempt is no longer wanted.
        """
        key = {"job_id": attempt.job_id, "attempt": attempt.number, "step": step}
        with self._database.transaction() as connection:
            job = _locked(connection, attempt)
            if job.stage != stage or job.status != status:
                connection.execute(
                    update(jobs)
                    .where(jobs.c.id == attempt.job_id)
                    .values(stage=stage, status=status)
                )
            if job.stage != stage:
                append_event(
                    connection, attempt.job_id, f"Stage {stage} begins.", data={"stage": stage}
                )
            counted = connection.execute(
                update(starts)
                .where(*(starts.c[name] == value for name, value in key.items()))
                .values(count=starts.c.count + 1)
                .returning(starts.c.count)
            ).scalar()
            if counted is None:
                connection.execute(starts.insert().values(**key, count=1))
            return 1 if counted is None else int(counted)

    def take_back(self, attempt: Attempt, step: str) -> None:
        """Undoes the count of a step that a worker gave up in good order."""
        with self._database.transaction() as connection:
            connection.execute(
                update(starts)
                .where(
                    starts.c.job_id == attempt.job_id,
                    starts.c.attempt == attempt.number,
                    starts.c.step == step,
                )
                .values(count=starts.c.count - 1)
            )

    def event(
        self, attempt: Attempt, message: str, data: Mapping[str, Any], *, metrics: bool = False
    ) -> None:
        """Adds an event.

        Raises:
            AttemptOver: If the attempt is no longer wanted.
        """
        with self._database.transaction() as connection:
            _locked(connection, attempt)
            kind: EventType = "metrics" if metrics else "message"
            append_event(connection, attempt.job_id, message, type=kind, data=data)

    def planned(
        self,
        attempt: Attempt,
        rows: int,
        message: str,
        data: Mapping[str, Any],
        *,
        steps: int | None = None,
        answers: int | None = None,
    ) -> None:
        """Notes how much is to be done.

        Args:
            attempt: Whose.
            rows: Rows to relabel.
            message: For people.
            data: For programs.
            steps: Optimizer steps that follow, if no row is left out; None: not known.
            answers: Answers of the evaluation; None: not known.

        Raises:
            AttemptOver: If the attempt is no longer wanted.
        """
        with self._database.transaction() as connection:
            _locked(connection, attempt)
            connection.execute(
                update(jobs).where(jobs.c.id == attempt.job_id).values(rows_total=rows)
            )
            note(connection, attempt.job_id, steps=steps, answers=answers)
            append_event(connection, attempt.job_id, message, data=data)

    def relabelling(self, attempt: Attempt, finished: Mapping[int, int]) -> None:
        """Notes that shards are about to be worked on; the pace counts from here.

        Args:
            attempt: Whose.
            finished: Rows of the shards that lie in the store already, by shard.

        Raises:
            AttemptOver: If the attempt is no longer wanted.
        """
        with self._database.transaction() as connection:
            job = _locked(connection, attempt)
            connection.execute(shards.delete().where(shards.c.job_id == attempt.job_id))
            for shard, rows in finished.items():
                _set_shard(connection, attempt, shard, rows, finished=True)
            if job.relabel_started_at is None:
                connection.execute(
                    update(jobs)
                    .where(jobs.c.id == attempt.job_id)
                    .values(
                        relabel_started_at=time.time(),
                        relabel_rows_before=sum(finished.values()),
                    )
                )

    def shard_progress(self, attempt: Attempt, shard: int, rows: int) -> None:
        """Notes how many rows of a shard are done, for the progress."""
        with self._database.transaction() as connection:
            _set_shard(connection, attempt, shard, rows, finished=False)

    def shard_finished(
        self, attempt: Attempt, shard: int, rows: int, data: Mapping[str, Any]
    ) -> None:
        """Notes a shard that now lies in the store, whoever put it there."""
        with self._database.transaction() as connection:
            _set_shard(connection, attempt, shard, rows, finished=True)
            append_event(
                connection,
                attempt.job_id,
                f"Shard {shard} is relabelled.",
                type="metrics",
                data={"shard": shard, "rows": rows, **data},
            )

    def relabelled(self, attempt: Attempt) -> None:
        """Notes that every shard is done."""
        with self._database.transaction() as connection:
            connection.execute(
                update(jobs)
                .where(jobs.c.id == attempt.job_id, jobs.c.relabel_finished_at.is_(None))
                .values(relabel_finished_at=time.time())
            )

    def tuning_progress(
        self, attempt: Attempt, done: int, total: int, seconds_left: float | None = None
    ) -> None:
        """Notes the optimizer steps of the fine-tuning, and how long the rest takes at its pace."""
        left = total - done
        with self._database.transaction() as connection:
            row = connection.execute(
                select(jobs.c.tuning).where(jobs.c.id == attempt.job_id)
            ).scalar_one()
            pace = None if row is None else json.loads(row).get("step_seconds")
            if left and seconds_left is not None:
                pace = seconds_left / left
                note(connection, attempt.job_id, step_seconds=pace)
            tuning = {"steps_done": done, "steps_total": total, "step_seconds": pace}
            connection.execute(
                update(jobs)
                .where(jobs.c.id == attempt.job_id, jobs.c.attempt == attempt.number)
                .values(tuning=json.dumps(tuning))
            )

    def tuned(self, attempt: Attempt, trained_tokens: int) -> None:
        """Notes how many answer tokens the fine-tuning was trained on.

        Raises:
            AttemptOver: If the attempt is no longer wanted.
        """
        with self._database.transaction() as connection:
            _locked(connection, attempt)
            note(connection, attempt.job_id, trained_tokens=trained_tokens)

    def evaluated(self, attempt: Attempt, seconds: float) -> None:
        """Notes how long an evaluation took."""
        with self._database.transaction() as connection:
            note(connection, attempt.job_id, evaluation_seconds=seconds)

    def staged(self, attempt: Attempt, checkpoint: str, message: str) -> None:
        """Notes the job's result.

        Raises:
            AttemptOver: If the attempt is no longer wanted.
        """
        with self._database.transaction() as connection:
            job = _locked(connection, attempt)
            if job.result == checkpoint:
                return
            connection.execute(
                update(jobs).where(jobs.c.id == attempt.job_id).values(result=checkpoint)
            )
            append_event(connection, attempt.job_id, message, data={"checkpoint": checkpoint})

    def approved(self, attempt: Attempt) -> bool:
        """Whether a person allowed the activation."""
        with self._database.reading() as connection:
            query = select(jobs.c.approved).where(jobs.c.id == attempt.job_id)
            return bool(connection.execute(query).scalar_one())

    def wait_for_approval(self, attempt: Attempt) -> None:
        """Hands the job to a person.

        Raises:
            AttemptOver: If the attempt is no longer wanted.
        """
        self._settle(
            attempt, "paused", "The checkpoint waits for approval.", {"stage": APPROVAL}, APPROVAL
        )

    def succeed(self, attempt: Attempt, message: str, data: Mapping[str, Any]) -> None:
        """Ends the job well.

        Raises:
            AttemptOver: If the attempt is no longer wanted.
        """
        self._settle(attempt, "succeeded", message, data)

    def fail(self, attempt: Attempt, error: JobError) -> None:
        """Ends the job with an error.

        Raises:
            AttemptOver: If the attempt is no longer wanted.
        """
        self._settle(attempt, "failed", error.message, {"code": error.code}, error=error)

    def suspend(self, attempt: Attempt, error: JobError) -> None:
        """Pauses the job for something that a person must put right; then it is resumed.

        Raises:
            AttemptOver: If the attempt is no longer wanted.
        """
        self._settle(attempt, "paused", error.message, {"code": error.code}, error=error)

    def _settle(
        self,
        attempt: Attempt,
        status: JobStatus,
        message: str,
        data: Mapping[str, Any],
        stage: str | None = None,
        error: JobError | None = None,
    ) -> None:
        values: dict[str, Any] = {"status": status}
        if status in ("succeeded", "failed"):
            values["finished_at"] = time.time()
        if stage is not None:
            values["stage"] = stage
        if error is not None:
            values["error"] = json.dumps(asdict(error))
        with self._database.transaction() as connection:
            _locked(connection, attempt)
            connection.execute(update(jobs).where(jobs.c.id == attempt.job_id).values(**values))
            append_event(
                connection,
                attempt.job_id,
                message,
                level="info" if error is None else "error",
                data={"status": status, **data},
            )


def _locked(connection: Connection, attempt: Attempt) -> Any:
    row = connection.execute(
        select(jobs).where(jobs.c.id == attempt.job_id).with_for_update()
    ).first()
    if row is None or row.attempt != attempt.number or row.status not in ACTIVE:
        raise AttemptOver()
    return row


def _set_shard(
    connection: Connection, attempt: Attempt, shard: int, rows: int, *, finished: bool
) -> None:
    job = select(jobs.c.id).where(jobs.c.id == attempt.job_id).with_for_update()
    connection.execute(job)
    key = (shards.c.job_id == attempt.job_id, shards.c.shard == shard)
    kept = update(shards).where(*key)
    if not finished:
        kept = kept.where(shards.c.finished.is_(False))
    found = connection.execute(select(shards.c.finished).where(*key)).first()
    if found is None:
        connection.execute(
            shards.insert().values(
                job_id=attempt.job_id, shard=shard, rows_done=rows, finished=finished
            )
        )
    else:
        connection.execute(kept.values(rows_done=rows, finished=finished))
