"""Events of a job over a real socket: in pages, and as a stream that resumes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from server.routes import job_events
from tests.support.job_server import JOBS, JobServer, create_job, job_server, refusal


def say(server: JobServer, job: str, *messages: str) -> None:
    for message in messages:
        server.events.append(job, message)


def test_events_are_paged_both_ways(server: JobServer) -> None:
    job = create_job(server)["id"]
    say(server, job, "two", "three", "four")
    with server.client() as client:

        def page(**query: Any) -> tuple[list[str], bool, str]:
            body = client.get(f"{JOBS}/{job}/events", params=query).raise_for_status().json()
            messages = [event["message"] for event in body["data"]]
            return messages, body["has_more"], body["data"][-1]["id"] if messages else ""

        newest, more, last = page(limit=2)
        assert (newest, more) == (["four", "three"], True)
        assert page(limit=2, after=last)[:2] == (["two", "The job was created."], False)
        oldest, more, last = page(limit=3, order="asc")
        assert (oldest, more) == (["The job was created.", "two", "three"], True)
        assert page(order="asc", after=last)[:2] == (["four"], False)
        assert page(order="asc", after=f"{job}.4")[:2] == ([], False)
        event = client.get(f"{JOBS}/{job}/events", params={"limit": 1}).json()["data"][0]
    assert event.pop("created_at") <= time.time()
    assert event == {
        "id": f"{job}.4",
        "object": "fine_tuning.job.event",
        "number": 4,
        "level": "info",
        "type": "message",
        "message": "four",
        "data": {},
    }


@pytest.mark.parametrize(
    ("query", "headers", "param"),
    [
        ("limit=0", {}, "limit"),
        ("limit=1001", {}, "limit"),
        ("order=x", {}, "order"),
        ("stream=maybe", {}, "stream"),
        ("after=1", {}, "after"),
        ("after=ftjob-0.1", {}, "after"),
        ("after={job}.x", {}, "after"),
        ("after={job}.-1", {}, "after"),
        ("after={job}.99999999999999999999", {}, "after"),
        ("stream=true&after=x", {}, "after"),
        ("stream=true", {"last-event-id": "x"}, "Last-Event-ID"),
    ],
)
def test_a_bad_question_for_events_is_refused(
    server: JobServer, query: str, headers: dict[str, str], param: str
) -> None:
    job = create_job(server)["id"]
    with server.client() as client:
        path = f"{JOBS}/{job}/events?{query.replace('{job}', job)}"
        assert refusal(client.get(path, headers=headers)) == (422, "invalid_request", param)


def read_events(lines: Iterator[str], count: int) -> list[tuple[str, Any]]:
    """The next events of a stream, each with its id; comments are left out."""
    found: list[tuple[str, Any]] = []
    data = event_id = ""
    while len(found) < count:
        line = next(lines)
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
        elif line.startswith("id: "):
            event_id = line.removeprefix("id: ")
        elif not line and data:
            found.append((event_id, data if data == "[DONE]" else json.loads(data)))
            data = event_id = ""
    return found


def test_a_stream_follows_resumes_and_ends(server: JobServer) -> None:
    job = create_job(server)["id"]
    path = f"{JOBS}/{job}/events?stream=true"
    with server.client() as client:
        with client.stream("GET", path) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert stream.headers["cache-control"] == "no-cache"
            lines = stream.iter_lines()
            [(first, event)] = read_events(lines, 1)
            assert (first, event["message"]) == (f"{job}.1", "The job was created.")
            say(server, job, "two", "three")
            seen = read_events(lines, 2)
            assert [event["message"] for _, event in seen] == ["two", "three"]
        say(server, job, "four")
        client.post(f"{JOBS}/{job}/cancel").raise_for_status()
        with client.stream("GET", path, headers={"last-event-id": seen[0][0]}) as stream:
            rest = read_events(stream.iter_lines(), 4)
        messages = [event if event == "[DONE]" else event["message"] for _, event in rest]
        assert messages == ["three", "four", "The job was cancelled.", "[DONE]"]
        with client.stream("GET", f"{path}&after={job}.4") as stream:
            body = "".join(stream.iter_text())
        assert body.endswith("data: [DONE]\n\n")
        assert body.count("data: ") == 2


def test_a_quiet_stream_says_that_it_lives(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_events, "QUIET_SECONDS", 0.0)
    job = create_job(server)["id"]
    with (
        server.client() as client,
        client.stream("GET", f"{JOBS}/{job}/events?stream=true") as stream,
    ):
        assert next(line for line in stream.iter_lines() if line.startswith(":")) == ": ping"


def test_a_stream_ends_when_the_server_stops(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with job_server(tmp_path, tiny_checkpoint) as server:
        job = create_job(server)["id"]
        with (
            server.client() as client,
            client.stream("GET", f"{JOBS}/{job}/events?stream=true") as stream,
        ):
            lines = stream.iter_lines()
            read_events(lines, 1)
            server.engine.close(0)
            assert "[DONE]" not in "".join(lines)


def test_a_stream_goes_on_without_a_model_and_ends_with_the_server(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_events, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(job_events, "QUIET_SECONDS", 0.0)
    with job_server(tmp_path, tiny_checkpoint) as server:
        server.engine.start()
        assert isinstance(server.engine.ready.exception(60), AssertionError)
        assert server.engine.state == "failed"
        job = create_job(server)["id"]
        with (
            server.client() as client,
            client.stream("GET", f"{JOBS}/{job}/events?stream=true") as stream,
        ):
            lines = stream.iter_lines()
            read_events(lines, 1)
            say(server, job, "two")
            [(_, event)] = read_events(lines, 1)
            assert event["message"] == "two"
            server.engine.close(0)
            rest = list(islice(lines, 1_000))
            assert len(rest) < 1_000
            assert not any("[DONE]" in line for line in rest)
