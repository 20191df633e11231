"""What a job has made, as files: listed in the job, downloaded, deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from server.store.attempts import Attempt, Attempts
from server.store.file_tables import purified_folder
from server.store.result_files import ResultFiles
from tests.support.job_server import JobServer

LABELS = json.dumps([{"id": 1}]).encode()


@pytest.fixture
def client(server: JobServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.keys["alice"]) as client:
        yield client


def merge(server: JobServer, job_id: str, folder: Path) -> None:
    """What a worker does once the purified data set is written."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.json").write_bytes(LABELS)
    (folder / "side.parquet").write_bytes(b"PAR1")
    manifest = server.store.put_folder(purified_folder(job_id), folder)
    results = ResultFiles(server.files._database, server.store)
    for _ in range(2):
        results.register(job_id, server.key_ids["alice"], manifest["files"])


def test_results_are_listed_and_read(
    client: openai.OpenAI, server: JobServer, tmp_path: Path
) -> None:
    before = {file.id for file in client.files.list(purpose="fine-tune-results")}
    job = client.fine_tuning.jobs.create(model="default", training_file="demo")
    assert (job.result_files, job.trained_tokens) == ([], None)
    merge(server, job.id, tmp_path / "merged")
    ids = client.fine_tuning.jobs.retrieve(job.id).result_files
    found = [client.files.retrieve(file_id) for file_id in ids]
    assert [(file.filename, file.purpose, file.bytes) for file in found] == [
        ("data/train.json", "fine-tune-results", len(LABELS)),
        ("side.parquet", "fine-tune-results", 4),
    ]
    assert [client.files.content(file_id).read() for file_id in ids] == [LABELS, b"PAR1"]
    after = {file.id for file in client.files.list(purpose="fine-tune-results")}
    assert after - before == set(ids)
    with server.client("bob") as other:
        assert other.get(f"/v1/files/{ids[0]}/content").status_code == 404
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.fine_tuning.jobs.create(model="default", training_file=ids[0])
    assert refused.value.param == "training_file"
    assert "does not hold the images" in refused.value.message


def test_results_are_deleted_once_the_job_has_finished(
    client: openai.OpenAI, server: JobServer, tmp_path: Path
) -> None:
    job = client.fine_tuning.jobs.create(model="default", training_file="demo")
    merge(server, job.id, tmp_path / "merged")
    labels, side = client.fine_tuning.jobs.retrieve(job.id).result_files
    with pytest.raises(openai.ConflictError):
        client.files.delete(labels)
    client.fine_tuning.jobs.cancel(job.id)
    client.files.delete(labels)
    assert client.fine_tuning.jobs.retrieve(job.id).result_files == [side]
    with pytest.raises(openai.NotFoundError):
        client.files.content(labels)
    assert client.files.content(side).read() == b"PAR1"
    folder = purified_folder(job.id)
    assert not server.store.exists(f"{folder}/data/train.json")
    assert not server.store.has_folder(folder), "a job that is resumed must write it anew"


def test_what_the_store_has_lost_is_not_found(
    client: openai.OpenAI, server: JobServer, tmp_path: Path
) -> None:
    job = client.fine_tuning.jobs.create(model="default", training_file="demo")
    merge(server, job.id, tmp_path / "merged")
    _, side = client.fine_tuning.jobs.retrieve(job.id).result_files
    server.store.remove(f"{purified_folder(job.id)}/side.parquet")
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.content(side)
    assert "does not have this file any more" in caught.value.message


def test_trained_tokens_are_told_at_the_end(client: openai.OpenAI, server: JobServer) -> None:
    job = client.fine_tuning.jobs.create(model="default", training_file="demo")
    attempts, attempt = Attempts(server.files._database), Attempt(job.id, 1)
    for tokens in (7, 420):
        attempts.tuned(attempt, tokens)
    assert client.fine_tuning.jobs.retrieve(job.id).trained_tokens is None
    attempts.succeed(attempt, "Done.", {})
    assert client.fine_tuning.jobs.retrieve(job.id).trained_tokens == 420
