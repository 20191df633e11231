"""What keeps the job engine honest (G1 to G6): names, versions, takeovers, whole files, stops."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dbos import DBOSClient, DBOSPortableJSONSerializer
from sqlalchemy import inspect, text

from server.jobs.workflow import APPLICATION_VERSION, PIPELINE
from server.store.database import Database
from server.store.workers import NameTaken, WorkerTable
from tests.support.job_worker import Forge, wait_for
from tests.support.jobs import Site

Undisturbed = tuple[Site, str, dict[str, Any]]

PLAIN = {
    "purification": [
        "plan",
        "shard",
        "shard",
        "shard",
        "DBOS.getResult",
        "DBOS.getResult",
        "DBOS.getResult",
        "merge",
        "device",
        "DBOS.getResult",
        "device",
        "DBOS.getResult",
        "stage",
        "gate",
        "activate",
    ],
    "shard": ["relabel"],
    "tune": ["tune"],
    "evaluate": ["evaluate"],
}

STEPS = {1: PLAIN, 2: PLAIN}
"""Steps of a job of three shards by pipeline version. A version's list never changes: whoever
changes the order of the steps raises `PIPELINE` and adds a list. Since version 2 a job that asks
for a detector has a child `detect` behind `plan`, and others the same steps as before."""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'disp.sqlite'}")
    database.create_tables()
    yield database
    database.close()


def freeze(pid: int, site: Site) -> None:
    """Freezes a process at a moment at which it does not hold SQLite's lock."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        connection = sqlite3.connect(site.home.root / "disp.sqlite", timeout=1.0)
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)
        finally:
            connection.close()


def set_row(database: Database, assignment: str, executor: str) -> None:
    with database.transaction() as connection:
        query = f"UPDATE workers SET {assignment} WHERE executor = :executor"
        connection.execute(text(query), {"executor": executor})


def test_g1_a_living_worker_keeps_its_name(database: Database) -> None:
    table = WorkerTable(database, patience=60.0)
    first = table.register("a", "cpu")
    with pytest.raises(NameTaken, match=rf"process {os.getpid()}.*--name"):
        table.register("a", "cpu")
    table.register("b", "cpu")
    table.leave(first)
    assert table.register("a", "cpu") != first


def test_g1_a_worker_whose_process_is_gone_does_not(database: Database) -> None:
    table = WorkerTable(database, patience=60.0)
    first = table.register("a", "cpu")
    set_row(database, "born = '1'", first)  # the process number was given to another process
    assert table.register("a", "cpu") != first


def test_g1_on_another_machine_the_heartbeat_decides(database: Database) -> None:
    table = WorkerTable(database, patience=60.0)
    first = table.register("a", "cpu")
    set_row(database, "born = '1', machine = 'elsewhere'", first)
    with pytest.raises(NameTaken, match="elsewhere"):
        table.register("a", "cpu")
    set_row(database, "beat_at = beat_at - 61", first)
    assert table.register("a", "cpu") != first


def test_g2_the_order_of_steps_is_that_of_its_version(undisturbed: Undisturbed) -> None:
    site, job_id, _ = undisturbed
    client = DBOSClient(
        system_database_url=site.home.database_url, serializer=DBOSPortableJSONSerializer()
    )
    try:
        parent = f"{job_id}.1"
        children = {"shard": "shard-00000", "tune": "tune", "evaluate": "evaluate"}
        ids = {"purification": parent} | {
            name: f"{parent}.{child}" for name, child in children.items()
        }
        found = {
            name: [step["function_name"] for step in client.list_workflow_steps(workflow)]
            for name, workflow in ids.items()
        }
        versions = {status.app_version for status in client.list_workflows()}
    finally:
        client.destroy()
    assert found == STEPS[PIPELINE]
    assert versions == {APPLICATION_VERSION} == {f"pipeline-{PIPELINE}"}


def test_g3_one_worker_takes_over_from_a_dead_one(database: Database) -> None:
    table = WorkerTable(database, patience=60.0)
    dead, left, first, second = (table.register(name, "cpu") for name in "abcd")
    assert table.claim_dead(first) == []
    set_row(database, "beat_at = beat_at - 61", dead)
    table.leave(left)
    assert sorted(table.claim_dead(first)) == sorted([dead, left])
    assert table.claim_dead(second) == []
    assert not table.beat(dead)
    table.reaped(left)
    # The first dies before it has taken over from `dead`: the second does.
    set_row(database, "beat_at = beat_at - 61", first)
    assert sorted(table.claim_dead(second)) == sorted([dead, first])
    assert table.beat(second)


def test_g3_a_frozen_worker_is_replaced_and_ends_when_it_wakes(
    forge: Forge, site: Site, tiny_checkpoint: Path, labels: Path, undisturbed: Undisturbed
) -> None:
    job = site.submit(tiny_checkpoint, labels)
    halt = {"key": "jobs/*/shards/00001.json", "when": "before"}
    frozen = forge.start(site.config("frozen"), halt)
    frozen.wait_until_halted()
    freeze(frozen.pid, site)
    (row,) = WorkerTable(site.database).list()
    set_row(site.database, "beat_at = beat_at - 61", row.executor)
    worker = forge.start(site.config("other"))
    ended = site.finished(job, worker)
    assert ended.status == "succeeded", ended.error
    assert frozen.alive()
    os.kill(frozen.pid, signal.SIGCONT)
    wait_for(lambda: not frozen.alive(), "the end of the worker that was taken for dead")
    assert site.result(job) == undisturbed[2]


def test_g3_a_step_that_kills_its_workers_fails_the_job(
    forge: Forge, site: Site, tiny_checkpoint: Path, labels: Path
) -> None:
    job = site.submit(tiny_checkpoint, labels)
    halt = {"key": "jobs/*/shards/00001.*.jsonl", "when": "before"}
    for _ in range(2):
        worker = forge.start(site.config(takeovers=1), halt)
        worker.wait_until_halted()
        worker.kill()
    ended = site.finished(job, forge.start(site.config(takeovers=1)))
    assert ended.status == "failed"
    assert ended.error is not None
    assert ended.error.code == "worker_lost"
    assert "relabel-00001" in ended.error.message
    assert "2 times" in ended.error.message


def test_g6_own_tables_stand_beside_those_of_the_engine(undisturbed: Undisturbed) -> None:
    site = undisturbed[0]
    names = set(inspect(site.database.engine).get_table_names())
    own = {"jobs", "job_events", "job_shards", "job_starts", "workers"}
    assert own | {"workflow_status", "operation_outputs"} <= names


def test_a_worker_of_a_taken_name_refuses(
    forge: Forge, site: Site, tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = forge.start(site.config("twin"))
    table = WorkerTable(site.database)
    wait_for(table.list, "the first worker")
    second = forge.start(site.config("twin"))
    wait_for(lambda: not second.alive(), "the end of the second worker")
    assert first.alive()
    assert [worker.pid for worker in table.list()] == [first.pid]


def test_a_newer_pipeline_goes_on_with_a_new_attempt(
    site: Site, tiny_checkpoint: Path, labels: Path, open_site: Callable[..., Site]
) -> None:
    from server.store.attempts import Attempt, AttemptOver, Attempts

    job = site.submit(tiny_checkpoint, labels)
    attempts = Attempts(site.database)
    first = Attempt(job.id, 1)
    assert attempts.waiting(1) == [first]
    attempts.dispatched(first, 1)
    assert attempts.waiting(1) == []
    second = Attempt(job.id, 2)
    assert attempts.waiting(2) == [second]
    attempts.dispatched(second, 2)
    assert attempts.waiting(2) == attempts.waiting(1) == []
    with pytest.raises(AttemptOver):
        attempts.start(first, "plan", "plan", "running")
    assert attempts.start(second, "plan", "plan", "running") == 1
