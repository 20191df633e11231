"""The `openai` package drives files and jobs, unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJobEvent

from tests.support.job_server import JobServer, data_archive

METHOD: Any = {"type": "disp", "disp": {"masking": {"ratio": 0.2}, "shard_rows": 5}}


@pytest.fixture
def client(server: JobServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.keys["alice"]) as client:
        yield client


def test_files(client: openai.OpenAI) -> None:
    content = data_archive()
    made = client.files.create(file=("x.zip", content), purpose="fine-tune")
    assert (made.object, made.bytes, made.filename) == ("file", len(content), "x.zip")
    others = [
        client.files.create(file=("y.zip", content), purpose="fine-tune").id for _ in range(2)
    ]
    assert client.files.retrieve(made.id) == made
    assert {item.id for item in client.files.list(limit=1)} >= {made.id, *others}
    gone = client.files.delete(made.id)
    assert (gone.id, gone.deleted) == (made.id, True)
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve(made.id)
    assert caught.value.code == "file_not_found"


def test_jobs(client: openai.OpenAI, server: JobServer) -> None:
    upload = client.files.create(file=("x.zip", data_archive()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="default",
        training_file=upload.id,
        validation_file="demo",
        method=METHOD,
        seed=7,
        suffix="clean",
        metadata={"who": "me"},
        extra_headers={"idempotency-key": "openai-1"},
    )
    assert (job.object, job.status, job.seed) == ("fine_tuning.job", "queued", 7)
    assert (job.training_file, job.validation_file) == (upload.id, "demo")
    assert (job.metadata, job.error, job.fine_tuned_model) == ({"who": "me"}, None, None)
    assert job.method is not None
    disp = job.method.to_dict()["disp"]
    assert isinstance(disp, dict)
    assert (disp["masking"]["ratio"], disp["shard_rows"]) == (0.2, 5)
    assert job.model_extra is not None
    assert job.model_extra["progress"]["rows_done"] == 0
    jobs = client.fine_tuning.jobs
    assert jobs.retrieve(job.id) == job
    more = [jobs.create(model="default", training_file="demo").id for _ in range(2)]
    assert [item.id for item in jobs.list(limit=1)][:3] == [*more[::-1], job.id]
    # A state that OpenAI's own jobs do not have.
    assert str(jobs.pause(job.id).status) == "paused"
    assert jobs.resume(job.id).status == "queued"
    assert jobs.cancel(job.id).status == "cancelled"
    assert list(jobs.checkpoints.list(job.id)) == []
    messages = [event.message for event in jobs.list_events(job.id, limit=1)]
    assert messages == [
        "The job was cancelled.",
        "The job was resumed.",
        "The job was paused.",
        "The job was created.",
    ]


def test_events_are_streamed(client: openai.OpenAI) -> None:
    job = client.fine_tuning.jobs.create(model="default", training_file="demo")
    client.fine_tuning.jobs.cancel(job.id)
    stream = client.get(
        f"/fine_tuning/jobs/{job.id}/events?stream=true",
        cast_to=FineTuningJobEvent,
        stream=True,
        stream_cls=openai.Stream[FineTuningJobEvent],
    )
    assert [event.message for event in stream] == ["The job was created.", "The job was cancelled."]


def test_a_final_refusal_is_sent_once(client: openai.OpenAI, server: JobServer) -> None:
    job = client.fine_tuning.jobs.create(model="default", training_file="demo")
    client.fine_tuning.jobs.cancel(job.id)
    before = server.jobs.get(job.id).last_event
    with pytest.raises(openai.ConflictError) as conflict:
        client.fine_tuning.jobs.cancel(job.id)
    assert conflict.value.code == "job_state_conflict"
    assert conflict.value.response.headers["x-should-retry"] == "false"
    assert server.jobs.get(job.id).last_event == before
    bad: Any = {"type": "disp", "disp": {"masking": {"ratio": 3.0}}}
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.fine_tuning.jobs.create(
            model="default",
            training_file="demo",
            method=bad,
        )
    assert refused.value.param == "method.disp.masking.ratio"
