"""A request for a job that is sent twice makes one job, whatever happens in between."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from purifier.lab.demo_model import write_random_checkpoint
from server.jobs.service import JobService
from server.jobs.spec import JobSpec, Sources
from server.store.blobs import BlobStore
from server.store.database import Database
from tests.support.job_server import JOBS, JobServer, data_archive, job_server, refusal, upload_file
from tests.support.postgres import postgres_cluster, postgres_url

__all__ = ["postgres_cluster", "postgres_url"]

DEMO = {"training_file": "demo"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[JobServer]:
    with job_server(tmp_path_factory.mktemp("home"), tiny_checkpoint) as server:
        yield server


def post(server: JobServer, body: dict[str, Any], **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with server.client() as client:
        return client.post(JOBS, json=body, headers=named)


def at_once(count: int, send: Callable[[int], httpx.Response]) -> list[httpx.Response]:
    """What requests from as many threads are answered that begin together."""
    answers: list[httpx.Response] = []
    together = threading.Barrier(count)

    def run(number: int) -> None:
        together.wait(60)
        answers.append(send(number))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == count
    return answers


def test_the_job_is_found_when_another_checkpoint_serves_by_now(
    server: JobServer, tmp_path: Path
) -> None:
    """`default` is another model then, but the request is the same."""
    first = post(server, DEMO, idempotency_key="before the swap")
    write_random_checkpoint(tmp_path / "other", seed=1)
    other = server.checkpoints.register(tmp_path / "other")
    server.checkpoints.verify(other.id)
    server.checkpoints.activate(other.id, actor="test")
    second = post(server, DEMO, idempotency_key="before the swap")
    server.checkpoints.rollback("test")
    assert second.status_code == 202, second.text
    assert second.json()["id"] == first.json()["id"]


def test_the_job_is_found_when_its_data_is_gone(server: JobServer) -> None:
    data_id = upload_file(server, data_archive()).json()["id"]
    body = {"training_file": data_id}
    first = post(server, body, idempotency_key="before the end of the file")
    server.jobs.cancel(first.json()["id"])
    server.files.delete(data_id)
    second = post(server, body, idempotency_key="before the end of the file")
    assert second.status_code == 202, second.text
    assert second.json()["id"] == first.json()["id"]
    other = post(server, body | {"seed": 3}, idempotency_key="before the end of the file")
    assert refusal(other) == (404, "file_not_found", "training_file")


def test_one_key_with_different_requests_at_once(server: JobServer) -> None:
    answers = at_once(
        8, lambda number: post(server, DEMO | {"seed": number % 2}, idempotency_key="both")
    )
    codes = Counter(answer.status_code for answer in answers)
    assert codes == {202: 4, 422: 4}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 202}) == 1
    refused = next(answer for answer in answers if answer.status_code == 422)
    assert refusal(refused) == (422, "idempotency_conflict", None)


def test_what_the_openai_package_repeats_at_once_is_made_once(server: JobServer) -> None:
    body = DEMO | {"seed": 4713}
    answers = at_once(6, lambda _: post(server, body, x_stainless_retry_count="1"))
    assert len({answer.json()["id"] for answer in answers}) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
def test_a_key_that_is_none_is_refused(server: JobServer, key: str) -> None:
    jobs = server.jobs.list(limit=100)
    sent = post(server, DEMO, idempotency_key=key)
    assert refusal(sent) == (422, "invalid_request", "Idempotency-Key")
    assert server.jobs.list(limit=100) == jobs


@pytest.mark.parametrize("key_id", ["alice", None])
def test_one_key_at_once_on_postgresql(
    postgres_url: str, tmp_path: Path, key_id: str | None
) -> None:
    """Also where nobody has a key of the API, so that no constraint of the table helps."""
    database = Database(postgres_url)
    database.create_tables()
    service = JobService(database, BlobStore(tmp_path))
    spec = JobSpec(model="tiny", training_file="file-1")
    sources = Sources(model=tmp_path, data=tmp_path)
    together, found = threading.Barrier(8), []

    def create() -> None:
        together.wait(60)
        found.append(service.create(spec, sources, key_id=key_id, idempotency_key="once").id)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert len(set(found)) == 1
    database.close()
