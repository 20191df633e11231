"""Jobs as rows: created once, steered by their status, events in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from purifier.messages import MOST_OF_A_MESSAGE
from server.errors import (
    IdempotencyConflict,
    InvalidSetting,
    JobNotFound,
    JobStateConflict,
)
from server.jobs.service import JobService, report_key
from server.jobs.spec import JobSpec, Sources
from server.store.audit import Actor, AuditLog
from server.store.blobs import BlobStore
from server.store.database import Database
from server.store.events import EventLog
from server.store.job_tables import jobs
from server.store.jobs import APPROVAL

ADMIN = Actor("admin")
SPEC = JobSpec(model="tiny@sha256:0123456789ab", training_file="file-1", seed=7)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'disp.sqlite'}")
    database.create_tables()
    yield database
    database.close()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store")


@pytest.fixture
def service(database: Database, store: BlobStore) -> JobService:
    return JobService(database, store)


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(model=tmp_path / "tiny", data=tmp_path / "train.json", images=tmp_path)


def test_created_job_is_read_back(service: JobService, sources: Sources) -> None:
    made = service.create(SPEC, sources, key_id="key-1")
    assert made == service.get(made.id)
    assert (made.status, made.stage, made.attempt) == ("queued", None, 1)
    assert JobSpec.from_dict(made.spec) == SPEC
    assert Sources.from_dict(made.sources) == sources
    assert [event.message for event in service.events(made.id)] == ["The job was created."]


def test_list_pages_newest_first(service: JobService, sources: Sources) -> None:
    ids = [service.create(SPEC, sources, key_id=None).id for _ in range(5)]
    first = service.list(limit=2)
    second = service.list(after=first[-1].id, limit=10)
    assert [job.id for job in [*first, *second]] == ids[::-1]


def test_repetition_finds_the_first_job(service: JobService, sources: Sources) -> None:
    first = service.create(SPEC, sources, key_id="a", idempotency_key="once")
    assert service.create(SPEC, sources, key_id="a", idempotency_key="once").id == first.id
    assert service.create(SPEC, sources, key_id="b", idempotency_key="once").id != first.id
    with pytest.raises(IdempotencyConflict):
        service.create(replace(SPEC, seed=8), sources, key_id="a", idempotency_key="once")


def test_simultaneous_repetitions_make_one_job(service: JobService, sources: Sources) -> None:
    found: list[str] = []

    def create() -> None:
        found.append(service.create(SPEC, sources, key_id="a", idempotency_key="once").id)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_status_decides_what_may_be_asked(service: JobService, sources: Sources) -> None:
    job = service.create(SPEC, sources, key_id=None)
    with pytest.raises(JobStateConflict, match="is queued"):
        service.resume(job.id)
    with pytest.raises(JobStateConflict, match="does not wait for approval"):
        service.approve(job.id, ADMIN)
    assert service.pause(job.id).status == "paused"
    with pytest.raises(JobStateConflict):
        service.pause(job.id)
    resumed = service.resume(job.id)
    assert (resumed.status, resumed.attempt) == ("queued", 2)
    cancelled = service.cancel(job.id)
    assert cancelled.finished
    assert cancelled.finished_at is not None
    for ask in (service.cancel, service.pause, service.resume):
        with pytest.raises(JobStateConflict):
            ask(job.id)
    with pytest.raises(JobStateConflict):
        service.approve(job.id, ADMIN)


def test_approval_that_cannot_be_written_down_is_none(
    service: JobService, sources: Sources, database: Database
) -> None:
    job = service.create(SPEC, sources, key_id=None)
    with database.transaction() as connection:
        connection.execute(jobs.update().values(status="paused", stage=APPROVAL))
        connection.exec_driver_sql("ALTER TABLE audit RENAME TO gone")
    with pytest.raises(OperationalError):
        service.approve(job.id, ADMIN)
    assert (service.get(job.id).status, service.get(job.id).approved) == ("paused", False)
    with database.transaction() as connection:
        connection.exec_driver_sql("ALTER TABLE gone RENAME TO audit")
    assert service.approve(job.id, ADMIN).approved
    [row] = AuditLog(database).list()
    assert (row.action, row.object, row.actor) == ("approve_job", job.id, "admin")


def test_unknown_job(service: JobService) -> None:
    with pytest.raises(JobNotFound):
        service.get("ftjob-none")
    with pytest.raises(JobNotFound):
        service.events("ftjob-none")


def test_events_are_numbered_in_the_order_they_are_seen(
    service: JobService, sources: Sources, database: Database
) -> None:
    job = service.create(SPEC, sources, key_id=None)
    log = EventLog(database)

    def add(name: int) -> None:
        for index in range(10):
            log.append(job.id, f"{name}.{index}", data={"index": index})

    threads = [threading.Thread(target=add, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    seen: list[int] = []
    while any(thread.is_alive() for thread in threads) or len(seen) < 41:
        seen.extend(event.number for event in service.events(job.id, after=len(seen), limit=7))
    for thread in threads:
        thread.join()
    assert seen == list(range(1, 42))
    back = service.newest_events(job.id, limit=5)
    assert [event.number for event in back] == [41, 40, 39, 38, 37]
    assert service.newest_events(job.id, before=3)[0].number == 2


def test_a_long_message_of_an_event_is_bounded(
    service: JobService, sources: Sources, database: Database
) -> None:
    job = service.create(SPEC, sources, key_id=None)
    EventLog(database).append(job.id, f"first {'x' * 4_000_000} last")
    message = service.newest_events(job.id, limit=1)[0].message
    assert len(message) <= MOST_OF_A_MESSAGE
    assert message.startswith("first x")
    assert message.endswith("x last")


def test_report_is_a_file_once_it_is_there(
    service: JobService, sources: Sources, store: BlobStore
) -> None:
    job = service.create(SPEC, sources, key_id=None)
    with pytest.raises(JobStateConflict, match="no report yet"):
        service.report_file(job.id, "html")
    store.write(report_key(job.id, "html"), b"<html></html>")
    assert service.report_file(job.id, "html").read_bytes() == b"<html></html>"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"shard_rows": 0}, "shard_rows"),
        ({"seed": -1}, "seed"),
        ({"bad_rows": 1.5}, "bad_rows"),
        ({"activate": "now"}, "activate"),
        ({"purify": [1]}, "purify"),
        ({"colour": "red"}, "colour"),
        ({"model": ""}, "model"),
    ],
)
def test_bad_spec_names_its_field(change: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        JobSpec.from_dict({**SPEC.to_dict(), **change})
    assert caught.value.param == param
