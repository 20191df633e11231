"""Jobs and rows in numbers: counted once, whenever somebody looks."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from server.store.attempts import Attempt, Attempts
from server.store.database import Database, DatabaseError
from server.store.events import append_event
from server.store.job_counts import JobCounter, JobCounts
from server.store.job_tables import jobs
from server.store.jobs import JobStore
from tests.support.engine import SECONDS, wait_until


def shard(relabelled: int, dropped: int, problems: int, **more: Any) -> dict[str, Any]:
    counts = {"relabelled": relabelled, "dropped": dropped, "problems": problems, "flagged": 1}
    return {**counts, "computed": True, **more}


def test_rows_of_finished_shards_are_counted_once(database: Database) -> None:
    store, attempts, counter = JobStore(database), Attempts(database), JobCounter(database)
    assert (counter.read().jobs, counter.read().flagged) == ({}, 0)
    first, second = (store.create({"seed": n}, {}, key_id=None).id for n in range(2))
    one, two = Attempt(first, 1), Attempt(second, 1)
    attempts.start(one, "relabel-0", "relabel", "running")
    attempts.shard_finished(one, 0, 10, shard(5, 3, 2))
    counts = counter.read()
    assert counts.jobs == {"running": 1, "queued": 1}
    assert counts.rows == {"relabelled": 5, "dropped": 1, "unusable": 2}
    assert counts.flagged == 1
    assert counter.read() == counts
    attempts.shard_finished(one, 1, 10, shard(1, 0, 0))
    attempts.shard_finished(one, 1, 10, shard(1, 0, 0, computed=False))
    attempts.event(one, "Step 1 of 2.", {"step": 1, "loss": 0.5}, metrics=True)
    attempts.shard_finished(two, 0, 10, shard(10, 0, 0))
    store.cancel(second)
    later = counter.read()
    assert later.jobs == {"running": 1, "cancelled": 1}
    assert later.rows == {"relabelled": 16, "dropped": 1, "unusable": 2}
    assert JobCounter(database).read() == later


def test_who_counts_waits_for_no_writer(database: Database) -> None:
    job = JobStore(database).create({}, {}, key_id=None)
    counter = JobCounter(database)
    with database.transaction() as connection:
        connection.execute(jobs.update().values(status="paused"))
        append_event(connection, job.id, "A shard.", data=shard(5, 3, 2, shard=0), type="metrics")
        assert counter.read().jobs == {"queued": 1}
    counts = counter.read()
    assert (counts.jobs, counts.rows["relabelled"]) == ({"paused": 1}, 5)


def test_a_database_that_hangs_holds_up_one_reader(postgres_url: str) -> None:
    database = Database(postgres_url)
    database.create_tables()
    counter = JobCounter(database, patience=0.0)
    counts: list[JobCounts] = []
    first = threading.Thread(target=lambda: counts.append(counter.read()))
    with database.transaction() as connection:
        connection.exec_driver_sql(f"LOCK TABLE {jobs.name} IN ACCESS EXCLUSIVE MODE")
        first.start()
        wait_until(counter._lock.locked)
        with pytest.raises(DatabaseError, match="still"):
            counter.read()
    first.join(SECONDS)
    assert counts == [counter.read()]
    database.close()


def test_a_database_without_jobs_cannot_be_counted(database: Database) -> None:
    counter = JobCounter(database)
    with database.transaction() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {jobs.name} RENAME TO gone")
    try:
        with pytest.raises(DatabaseError):
            counter.read()
    finally:
        with database.transaction() as connection:
            connection.exec_driver_sql(f"ALTER TABLE gone RENAME TO {jobs.name}")
