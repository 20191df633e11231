"""Both clients' jobs, files and checkpoints against the real service."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import clients
from clients import Client
from server.jobs.service import report_key
from server.store.attempts import Attempt, Attempts
from server.store.jobs import JobError
from tests.support.cut_proxy import cut_proxy
from tests.support.job_server import JobServer, data_archive
from tests.support.wire import Caller, sent

Ask = Callable[..., Any]

SMALL = {"masking": {"level": "token", "ranker": "random"}, "generation": {"block_length": None}}


def test_a_file_is_uploaded_listed_and_deleted(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "scenes.zip"
    path.write_bytes(data_archive())
    made = ask("files.upload", path)
    assert (made.filename, made.bytes, made.purpose) == (
        "scenes.zip",
        path.stat().st_size,
        "fine-tune",
    )
    assert ask("files.get", made.id) == made
    with tarfile.open(fileobj=io.BytesIO(ask("files.content", made.id))) as archive:
        assert "data.json" in archive.getnames()
    assert ask("files.list", limit=1).data == [made]
    assert ask("files.list", after=made.id, limit=1).data != [made]
    assert ask("files.delete", made.id).deleted
    with pytest.raises(clients.NotFound) as caught:
        ask("files.get", made.id)
    assert caught.value.code == "file_not_found"


def test_bytes_and_open_files_are_uploaded_as_well(ask: Ask, tmp_path: Path) -> None:
    content = data_archive(3)
    path = tmp_path / "open.zip"
    path.write_bytes(content)
    with path.open("rb") as file:
        opened = ask("files.upload", file)
        assert not file.closed
    named = ask("files.upload", content, filename="other.zip")
    unnamed = ask("files.upload", io.BytesIO(content))
    assert [one.filename for one in (opened, named, unnamed)] == ["open.zip", "other.zip", "data"]
    assert len({one.sha256 for one in (opened, named, unnamed)}) == 1


def test_a_file_that_cannot_be_read_is_not_sent(ask: Ask, tmp_path: Path) -> None:
    with pytest.raises(clients.InvalidInput, match=r"absent\.zip"):
        ask("files.upload", tmp_path / "absent.zip")
    with pytest.raises(clients.InvalidInput, match="is a folder: pack it"):
        ask("files.upload", tmp_path)


def test_an_upload_never_lies_in_memory_whole(call: Caller, tmp_path: Path) -> None:
    path = tmp_path / "large.zip"
    path.write_bytes(bytes(3_000_000))
    pieces: list[int] = []

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=FILE)

    class Counted(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            pieces.append(-1 if size is None else size)
            return super().read(size)

    with Counted(path) as file:
        assert call(handler, "files.upload", file).id == "file-1"
    assert max(pieces) <= 1 << 20
    assert min(pieces) > 0


def test_an_upload_is_sent_whole_again_to_a_busy_server(call: Caller) -> None:
    bodies: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        if len(bodies) == 1:
            return httpx.Response(503, json={}, headers={"retry-after": "0"})
        return httpx.Response(200, json=FILE)

    call(handler, "files.upload", io.BytesIO(b"some rows"))
    assert bodies[0] == bodies[1]
    assert b"some rows" in bodies[0]


def test_data_sets_of_the_server(ask: Ask) -> None:
    assert "demo" in [card.id for card in ask("files.datasets").data]


def test_a_job_is_created_listed_and_steered(ask: Ask, data_id: str) -> None:
    job = ask(
        "jobs.create",
        data_id,
        settings=SMALL | {"policy": "drop_flagged"},
        seed=4,
        suffix="healed",
        metadata={"team": "vision"},
    )
    assert (job.status, job.training_file, job.seed, job.suffix) == ("queued", data_id, 4, "healed")
    assert job.method.disp["policy"] == "drop_flagged"
    assert job.method.disp["generation"]["block_length"] is None
    assert ask("jobs.get", job.id) == job
    assert ask("jobs.list", limit=1).data == [job]
    assert ask("jobs.pause", job.id).status == "paused"
    assert ask("jobs.resume", job.id).status == "queued"
    assert ask("jobs.cancel", job.id).status == "cancelled"
    with pytest.raises(clients.Conflict) as caught:
        ask("jobs.resume", job.id)
    assert caught.value.code == "job_state_conflict"


def test_settings_in_force_can_be_sent_back(ask: Ask, job_id: str) -> None:
    job = ask("jobs.get", job_id)
    again = ask("jobs.create", job.training_file, settings=job.method.disp, seed=job.seed)
    assert again.method == job.method


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"settings": {"polcy": "relabel_all"}}, "method.disp.polcy"),
        ({"settings": {"finetune": {"epochs": "4"}}}, "method.disp.finetune.epochs"),
        ({"seed": -1}, "seed"),
        ({"suffix": "a b"}, "suffix"),
        ({"metadata": {"": "x"}}, "metadata"),
        ({"idempotency_key": "a\nb"}, "idempotency_key"),
        ({"idempotency_key": ""}, "idempotency_key"),
    ],
)
def test_a_job_that_cannot_be_is_not_sent(call: Caller, fields: dict[str, Any], param: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise AssertionError("it was sent")

    with pytest.raises(clients.InvalidInput, match=f"^{param}"):
        call(handler, "jobs.create", "file-1", **fields)


def test_what_only_the_server_knows_is_its_error(ask: Ask, data_id: str) -> None:
    with pytest.raises(clients.NotFound) as absent:
        ask("jobs.create", "file-0")
    assert absent.value.param == "training_file"
    with pytest.raises(clients.Unprocessable) as wrong:
        ask("jobs.create", data_id, settings={"masking": {"ratio": 2.0}})
    assert wrong.value.param == "method.disp.masking.ratio"
    with pytest.raises(clients.Forbidden):
        ask("jobs.create", data_id, key="reader")


def test_a_creation_whose_answer_was_lost_is_repeated_and_makes_one_job(
    ask: Ask, board: JobServer, data_id: str
) -> None:
    before = len(board.jobs.list(limit=1000))
    with cut_proxy(board.url, cuts=[1]) as proxy:
        job = ask("jobs.create", data_id, url=proxy.url)
        assert proxy.connections == 2
    assert len(board.jobs.list(limit=1000)) == before + 1
    assert board.jobs.get(job.id).status == "queued"


def test_an_idempotency_key_of_the_callers_own(ask: Ask, data_id: str) -> None:
    key = f"monday-{data_id}"
    first = ask("jobs.create", data_id, idempotency_key=key)
    assert ask("jobs.create", data_id, idempotency_key=key).id == first.id
    with pytest.raises(clients.Unprocessable) as caught:
        ask("jobs.create", data_id, idempotency_key=key, seed=9)
    assert caught.value.code == "idempotency_conflict"


def test_steering_is_not_repeated_after_a_broken_connection(
    ask: Ask, board: JobServer, job_id: str
) -> None:
    with cut_proxy(board.url, cuts=[1]) as proxy, pytest.raises(clients.ConnectionFailed):
        ask("jobs.pause", job_id, url=proxy.url)
    assert board.jobs.get(job_id).status == "paused"


def test_events_come_in_pages(ask: Ask, board: JobServer, job_id: str) -> None:
    numbers = [board.events.append(job_id, f"event {n}") for n in range(3)]
    oldest = ask("jobs.events", job_id, order="asc", limit=2)
    assert ([event.number for event in oldest.data], oldest.has_more) == ([1, 2], True)
    rest = ask("jobs.events", job_id, order="asc", after=oldest.data[-1].id)
    assert [event.number for event in rest.data] == numbers[1:]
    assert ask("jobs.events", job_id, limit=1).data[0].message == "event 2"


def test_events_are_followed_to_the_end_over_connections_that_break(
    ask: Ask, board: JobServer, job_id: str
) -> None:
    for n in range(20):
        board.events.append(job_id, f"event {n}", data={"n": n})
    board.jobs.cancel(job_id)
    with cut_proxy(board.url, cuts=[900, 2000]) as proxy:
        events = ask("jobs.follow", job_id, url=proxy.url)
        assert proxy.connections == 3
    assert [event.number for event in events] == list(range(1, 23))
    assert events[-1].data == {"status": "cancelled"}
    assert ask("jobs.follow", job_id, after=events[-2].id) == events[-1:]
    assert ask("jobs.follow", job_id, after=events[-1].id) == []


def test_events_are_followed_as_they_happen(board: JobServer, job_id: str) -> None:
    with Client(board.url, board.keys["alice"]) as client:
        stream = client.jobs.follow(job_id)
        assert next(stream).message == "The job was created."
        board.events.append(job_id, "a moment later")
        assert next(stream).message == "a moment later"
        board.jobs.cancel(job_id)
        assert [event.message for event in stream] == ["The job was cancelled."]


def test_a_stream_that_stays_away_is_given_up(ask: Ask, board: JobServer, job_id: str) -> None:
    with cut_proxy(board.url, cuts=[1, 1]) as proxy, pytest.raises(clients.ConnectionFailed):
        ask("jobs.follow", job_id, url=proxy.url, patience=0.0)
    with pytest.raises(clients.NotFound):
        ask("jobs.follow", "ftjob-0")
    with pytest.raises(clients.InvalidInput, match="patience"):
        ask("jobs.follow", job_id, patience=-1.0)


def test_waiting_ends_with_the_job(ask: Ask, board: JobServer, job_id: str) -> None:
    with pytest.raises(clients.WaitTimedOut, match="still queued"):
        ask("jobs.wait", job_id, timeout=0.05, poll=0.02)
    ending = threading.Thread(target=board.jobs.cancel, args=(job_id,))
    ending.start()
    assert ask("jobs.wait", job_id, timeout=60, poll=0.02).status == "cancelled"
    ending.join()


def test_waiting_ends_where_somebody_must_approve(
    ask: Ask, board: JobServer, job_id: str, attempts: Attempts
) -> None:
    attempt = Attempt(job_id, 1)
    attempts.start(attempt, "gate", "gate", "running")
    attempts.wait_for_approval(attempt)
    assert ask("jobs.wait", job_id).stage == "approval"
    with pytest.raises(clients.Forbidden):
        ask("jobs.approve", job_id)
    assert ask("jobs.approve", job_id, key="admin").status == "queued"


def test_a_job_that_failed_says_why(
    ask: Ask, board: JobServer, job_id: str, attempts: Attempts
) -> None:
    attempt = Attempt(job_id, 1)
    attempts.start(attempt, "plan", "plan", "validating_files")
    attempts.fail(attempt, JobError("too_many_bad_rows", "3 rows cannot be used.", "training_file"))
    job = ask("jobs.wait", job_id)
    assert (job.status, job.error.code) == ("failed", "too_many_bad_rows")


def test_the_report_and_the_checkpoint(
    ask: Ask, board: JobServer, job_id: str, tiny_checkpoint: Path, attempts: Attempts
) -> None:
    assert ask("jobs.checkpoints", job_id).data == []
    with pytest.raises(clients.Conflict):
        ask("jobs.report", job_id)
    for kind, content in (("json", b'{"rows": 2}'), ("html", b"<!doctype html>")):
        board.store.write(report_key(job_id, kind), content)  # type: ignore[arg-type]
    assert ask("jobs.report", job_id) == {"rows": 2}
    assert ask("jobs.report_page", job_id) == b"<!doctype html>"
    attempt = Attempt(job_id, 1)
    attempts.start(attempt, "stage", "stage", "running")
    checkpoint = board.checkpoints.active()
    assert checkpoint is not None
    attempts.staged(attempt, checkpoint.id, "The checkpoint is staged.")
    (made,) = ask("jobs.checkpoints", job_id).data
    assert made.fine_tuned_model_checkpoint == checkpoint.id


def test_an_answer_that_is_no_report_is_told_apart(call: Caller) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="<html>hello</html>", headers={"content-type": "text/html"})

    with pytest.raises(clients.UnexpectedResponse):
        call(handler, "jobs.report", "ftjob-1")
    with pytest.raises(clients.UnexpectedResponse, match="stream of events"):
        call(handler, "jobs.follow", "ftjob-1")


def test_ids_stay_inside_their_path(call: Caller) -> None:
    paths: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path)
        return httpx.Response(404, json={})

    for method in (
        "jobs.get",
        "jobs.cancel",
        "files.delete",
        "files.content",
        "checkpoints.activate",
        "checkpoints.delete",
    ):
        with pytest.raises(clients.NotFound):
            call(handler, method, "../keys?x=1")
    assert all(b"..%2Fkeys%3Fx%3D1" in path for path in paths)


def test_what_is_sent_is_what_was_given(call: Caller) -> None:
    requests: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(404, json={})

    with pytest.raises(clients.NotFound):
        call(handler, "jobs.create", "file-1", settings=SMALL)
    assert sent(requests[0]) == {
        "training_file": "file-1",
        "model": "default",
        "method": {"type": "disp", "disp": SMALL},
    }
    with pytest.raises(clients.NotFound):
        call(handler, "checkpoints.activate", "tiny@sha256:0", force=True)
    assert json.loads(requests[1].content) == {"force": True}
    assert requests[0].headers["idempotency-key"]


FILE = {
    "id": "file-1",
    "bytes": 1,
    "created_at": 1,
    "filename": "data",
    "purpose": "fine-tune",
    "sha256": "0" * 64,
}
