"""Jobs and their rows in numbers, over all jobs that there are."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from server.errors import DatabaseUnavailable
from server.store.database import Database, DatabaseError
from server.store.job_tables import events, jobs

OUTCOMES = ("relabelled", "dropped", "unusable")


@dataclass(frozen=True)
class JobCounts:
    """Jobs and rows in numbers.

    Attributes:
        jobs: Status -> jobs in it now.
        rows: Outcome -> rows with it: new labels, left out by the policy, or left out because
            they could not be purified. Rows that stay as they were are in none.
        flagged: Rows whose label disagreed with what the masked model sees.
    """

    jobs: Mapping[str, int]
    rows: Mapping[str, int]
    flagged: int


class JobCounter:
    """Counts jobs and rows; remembers how far it has read, so that it reads only what is new.

    Rows are counted as their shards are finished. A shard that a killed worker had finished but
    not reported is not counted.

    Args:
        database: The service's.
        patience: Seconds that somebody waits who asks while it is being read; so a database that
            hangs holds up one thread, and those that ask after it for no longer than this.
    """

    def __init__(self, database: Database, patience: float = 5.0) -> None:
        self._database = database
        self._patience = patience
        self._lock = threading.Lock()
        self._read_up_to: dict[str, int] = {}
        self._rows: Counter[str] = Counter()

    def read(self) -> JobCounts:
        """The numbers now.

        Raises:
            DatabaseError: If the database cannot be read, or not in time.
        """
        if not self._lock.acquire(timeout=self._patience):
            raise DatabaseError("The jobs are still being counted.")
        try:
            return self._read()
        except (SQLAlchemyError, DatabaseUnavailable):
            raise DatabaseError("The jobs cannot be counted.") from None
        finally:
            self._lock.release()

    def _read(self) -> JobCounts:
        with self._database.reading() as connection:
            grouped = select(jobs.c.status, func.count()).group_by(jobs.c.status)
            by_status = {row.status: row[1] for row in connection.execute(grouped)}
            newest = connection.execute(select(jobs.c.id, jobs.c.last_event)).all()
        for job_id, last in newest:
            if last > self._read_up_to.get(job_id, 0):
                with self._database.reading() as connection:
                    self._add(connection, job_id, last)
        rows = {outcome: self._rows[outcome] for outcome in OUTCOMES}
        return JobCounts(by_status, rows, self._rows["flagged"])

    def _add(self, connection: Connection, job_id: str, last: int) -> None:
        """Adds the shards that a job has finished since it was looked at."""
        since = self._read_up_to.get(job_id, 0)
        query = select(events.c.data).where(
            events.c.job_id == job_id,
            events.c.number > since,
            events.c.number <= last,
            events.c.type == "metrics",
        )
        found: Counter[str] = Counter()
        for text in connection.execute(query).scalars():
            data = json.loads(text)
            if data.get("computed") and "shard" in data:
                problems = data["problems"]
                found["relabelled"] += data["relabelled"]
                found["dropped"] += data["dropped"] - problems
                found["unusable"] += problems
                found["flagged"] += data["flagged"]
        self._rows += found
        self._read_up_to[job_id] = last
