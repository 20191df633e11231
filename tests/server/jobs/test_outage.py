"""The database is away for a while in every stage of a job; the job does not notice."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.job_worker import Forge, Worker, wait_for
from tests.support.jobs import Site
from tests.support.postgres import Cluster, running_cluster

Undisturbed = tuple[Site, str, dict[str, Any]]

PAUSES = (
    "planned",
    "shard_progress",
    "shard_finished",
    "relabelled",
    "tuning_progress",
    "tuned",
    "evaluated",
    "staged",
    "succeed",
)
"""What a worker is about to write when the database goes away, in the order of the stages."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster that may be stopped."""
    with running_cluster() as cluster:
        yield cluster


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Holds the write lock of an SQLite file."""
    with closing(sqlite3.connect(file, isolation_level=None, timeout=60)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def retries(worker: Worker) -> int:
    assert worker.alive(), worker.log
    return worker.log.count("The database does not answer")


def go_on_in_vain(worker: Worker, call: str) -> None:
    """Lets a worker go on; returns once it has tried to reach the database, and not succeeded."""
    before = retries(worker)
    worker.go_on(call)
    wait_for(lambda: retries(worker) > before, f"a vain try after {call}")


def test_postgresql_stops_and_starts_in_every_stage(
    cluster: Cluster,
    forge: Forge,
    open_site: Callable[..., Site],
    tiny_checkpoint: Path,
    labels: Path,
    undisturbed: Undisturbed,
) -> None:
    cluster.execute("CREATE DATABASE outages")
    site = open_site(cluster.url("outages"))
    job = site.submit(tiny_checkpoint, labels)
    worker = forge.start(site.config(), pauses=PAUSES)
    for number, call in enumerate(PAUSES):
        worker.wait_until_paused(call)
        cluster.stop((signal.SIGINT, signal.SIGQUIT)[number % 2])
        go_on_in_vain(worker, call)
        cluster.start()
    ended = site.finished(job, worker)
    worker.kill()
    assert ended.status == "succeeded", ended.error
    assert site.result(job) == undisturbed[2]
    told = [event.message for event in site.service.events(job.id, limit=1_000)]
    assert sum(message.startswith("Shard ") for message in told) == 3
    site.database.close()


def test_the_write_lock_of_sqlite_is_held_in_every_stage(
    forge: Forge,
    site: Site,
    tiny_checkpoint: Path,
    labels: Path,
    undisturbed: Undisturbed,
) -> None:
    """For longer than one statement waits for it."""
    job = site.submit(tiny_checkpoint, labels)
    worker = forge.start(site.config(timings={"lock_wait": 0.2}), pauses=PAUSES)
    for call in PAUSES:
        worker.wait_until_paused(call)
        with locked(site.home.root / "disp.sqlite"):
            go_on_in_vain(worker, call)
    ended = site.finished(job, worker)
    worker.kill()
    assert ended.status == "succeeded", ended.error
    assert site.result(job) == undisturbed[2]


def test_a_worker_ends_when_the_database_is_away_for_too_long(
    forge: Forge, site: Site, tiny_checkpoint: Path, labels: Path
) -> None:
    """The job has not failed: the next worker does what is left of it."""
    job = site.submit(tiny_checkpoint, labels)
    timings = {"lock_wait": 0.2, "patience": 10.0}
    worker = forge.start(site.config("first", timings=timings), pauses=["shard_finished"])
    worker.wait_until_paused("shard_finished")
    with locked(site.home.root / "disp.sqlite"):
        worker.go_on("shard_finished")
        wait_for(lambda: not worker.alive(), "the end of the worker")
    assert not site.service.get(job.id).finished
    second = forge.start(site.config("second"))
    assert site.finished(job, second).status == "succeeded"
