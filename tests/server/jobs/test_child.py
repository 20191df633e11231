"""The worker beside a server: there while there is work, again when it dies, gone with it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.errors import DatabaseUnavailable
from server.jobs import child as child_module
from server.jobs.child import WorkerChild, worker_command
from server.store.database import Database
from tests.support.job_worker import wait_for
from tests.support.jobs import Site

WAITS_FOR_ITS_SERVER = [sys.executable, "-S", "-c", "import os\nwhile os.read(0, 1): pass"]


@pytest.fixture
def open_child(site: Site) -> Iterator[Callable[..., WorkerChild]]:
    children: list[WorkerChild] = []

    def open(command: list[str], **settings: float) -> WorkerChild:
        children.append(WorkerChild(command, site.database, **settings))
        children[-1].start()
        return children[-1]

    yield open
    for child in children:
        child.stop()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_it_runs_while_there_is_work(
    site: Site, open_child: Callable[..., WorkerChild], tiny_checkpoint: Path, labels: Path
) -> None:
    child = open_child(WAITS_FOR_ITS_SERVER, idle=0.0)
    assert (child.state, child.pid) == ("idle", None)
    job = site.submit(tiny_checkpoint, labels)
    pid = wait_for(lambda: child.pid, "the worker")
    assert child.state == "running"
    site.service.cancel(job.id)
    wait_for(lambda: child.pid is None, "the end of the worker")
    assert gone(pid)
    assert (child.state, child.restarts) == ("idle", 0)


def test_it_is_started_again_when_it_dies(
    site: Site, open_child: Callable[..., WorkerChild], tiny_checkpoint: Path, labels: Path
) -> None:
    site.submit(tiny_checkpoint, labels)
    child = open_child(WAITS_FOR_ITS_SERVER)
    first = wait_for(lambda: child.pid, "the worker")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: child.restarts == 1, "the death to be noticed")
    second = wait_for(lambda: child.pid, "the next worker")
    assert second != first
    child.stop()
    assert gone(second)


def test_one_that_cannot_start_is_tried_less_and_less_often(
    site: Site, open_child: Callable[..., WorkerChild], tiny_checkpoint: Path, labels: Path
) -> None:
    site.submit(tiny_checkpoint, labels)
    child = open_child([sys.executable, "-S", "-c", "raise SystemExit(2)"])
    wait_for(lambda: child.restarts == 2, "two failed starts")
    assert child.state == "failed"
    assert child._pause == 4.0


def test_an_outage_of_the_database_fills_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(child_module, "_LOOK_SECONDS", 0.001)
    database = Database(f"sqlite:///{tmp_path}/disp.sqlite")
    database.create_tables()
    child = WorkerChild(WAITS_FOR_ITS_SERVER, database)
    looks = 0
    enough = threading.Event()

    def look(**_: object) -> list[object]:
        nonlocal looks
        looks += 1
        if looks <= 20:
            raise DatabaseUnavailable(retry_after=5)
        enough.set()
        return []

    monkeypatch.setattr(child._jobs, "list", look)
    with caplog.at_level(logging.ERROR):
        child.start()
        assert enough.wait(60)
        child.stop()
    assert [record.name for record in caplog.records] == ["disp.server"]
    database.close()


def test_the_command_names_its_folder_and_watches_its_server() -> None:
    command = worker_command(
        data_dir="/data", database_url=None, store=None, device="cpu", dtype="float32", name="x"
    )
    assert command[1:5] == ["-P", "-m", "server.jobs", "--lifeline"]
    assert "--database-url" not in command
    more = worker_command(
        data_dir="/data",
        database_url="postgresql+psycopg://u@h/n",
        store="s3://bucket/prefix",
        device="cuda",
        dtype="bfloat16",
        name="x",
    )
    assert more[-4:] == [
        "--database-url",
        "postgresql+psycopg://u@h/n",
        "--store",
        "s3://bucket/prefix",
    ]
