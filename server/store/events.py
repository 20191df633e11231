"""What happened in a job, in order: numbered without gaps, never changed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, select, update

from purifier.messages import bounded
from server.store.database import Database
from server.store.job_tables import events, jobs
from server.store.outages import all_retried

EventLevel = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics"]


@dataclass(frozen=True)
class Event:
    """One thing that happened in a job.

    Attributes:
        job_id: The job.
        number: 1, 2, 3 ... within the job; what is seen once is never followed by a smaller one.
        created_at: Unix seconds.
        level: How bad it is.
        type: `metrics` where `data` holds figures.
        message: For people; never the text of a foreign exception.
        data: For programs, JSON.
    """

    job_id: str
    number: int
    created_at: float
    level: EventLevel
    type: EventType
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Public name: job and number."""
        return f"{self.job_id}.{self.number}"


@all_retried
class EventLog:
    """The events of every job."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(
        self,
        job_id: str,
        message: str,
        *,
        level: EventLevel = "info",
        type: EventType = "message",
        data: Mapping[str, Any] | None = None,
    ) -> int:
        """Adds an event to a job; returns its number."""
        with self._database.transaction() as connection:
            return append_event(connection, job_id, message, level=level, type=type, data=data)

    def refused(self, job_id: str, worker: str, reason: str) -> None:
        """Notes, once for every worker, that a worker cannot do a job that waits."""
        start = f"Worker {worker} cannot"
        with self._database.transaction() as connection:
            told = select(events.c.number).where(
                events.c.job_id == job_id,
                events.c.message.startswith(start, autoescape=True),
            )
            if connection.execute(told).first() is None:
                message = f"{start} do this job: {reason}"
                append_event(connection, job_id, message, level="warn", data={"worker": worker})

    def read(self, job_id: str, *, after: int = 0, limit: int = 100) -> list[Event]:
        """The events numbered above `after`, in order, at most `limit`."""
        query = (
            select(events)
            .where(events.c.job_id == job_id, events.c.number > after)
            .order_by(events.c.number)
            .limit(limit)
        )
        with self._database.reading() as connection:
            return [_event(row) for row in connection.execute(query)]

    def read_back(self, job_id: str, *, before: int | None = None, limit: int = 100) -> list[Event]:
        """The events numbered below `before` (None: the newest), newest first."""
        query = select(events).where(events.c.job_id == job_id)
        if before is not None:
            query = query.where(events.c.number < before)
        query = query.order_by(events.c.number.desc()).limit(limit)
        with self._database.reading() as connection:
            return [_event(row) for row in connection.execute(query)]


def append_event(
    connection: Connection,
    job_id: str,
    message: str,
    *,
    level: EventLevel = "info",
    type: EventType = "message",
    data: Mapping[str, Any] | None = None,
) -> int:
    """Adds an event inside a transaction; returns its number.

    The job's row is locked until the transaction ends, so that numbers become visible in
    their order and a reader that has seen number n never misses a smaller one.
    """
    counted = (
        update(jobs)
        .where(jobs.c.id == job_id)
        .values(last_event=jobs.c.last_event + 1)
        .returning(jobs.c.last_event)
    )
    number = int(connection.execute(counted).scalar_one())
    connection.execute(
        events.insert().values(
            job_id=job_id,
            number=number,
            created_at=time.time(),
            level=level,
            type=type,
            message=bounded(message),
            data=json.dumps(dict(data or {})),
        )
    )
    return number


def _event(row: Any) -> Event:
    return Event(
        job_id=row.job_id,
        number=row.number,
        created_at=row.created_at,
        level=row.level,
        type=row.type,
        message=row.message,
        data=json.loads(row.data),
    )
