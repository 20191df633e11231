"""Reads are answered while the database is locked, and come back when it was away."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from server.app import ROUTERS
from server.routes import job_events
from tests.support.job_server import (
    JOBS,
    JobServer,
    create_job,
    data_archive,
    job_server,
    upload_file,
)
from tests.support.postgres import running_cluster

ELSEWHERE = ("/health", "/v1/checkpoints")
"""Need no database; need a server with a model, and are asked in `test_activation`."""


@pytest.fixture
def server(tmp_path: Path, tiny_checkpoint: Path) -> Iterator[JobServer]:
    with job_server(tmp_path, tiny_checkpoint) as server:
        yield server


def test_every_read_is_answered_while_the_write_lock_is_held(server: JobServer) -> None:
    active = server.checkpoints.active()
    assert active is not None
    data_id = upload_file(server, data_archive()).json()["id"]
    job_id = create_job(server, "admin", training_file=data_id)["id"]
    server.jobs.cancel(job_id)
    server.checkpoints.verify(active.id)
    server.store.write(f"jobs/{job_id}/report/report.json", b"{}")
    names = {
        "job_id": job_id,
        "file_id": data_id,
        "checkpoint_id": active.id,
        "checkpoint": active.id,
        "model": active.id,
        "model_id": active.id,
    }
    routes = [route for router in ROUTERS for route in router.routes]
    paths = {
        route.path_format
        for route in routes
        if isinstance(route, APIRoute) and "GET" in (route.methods or ())
    }
    asked = [path.format(**names) for path in sorted(paths) if not path.startswith(ELSEWHERE)]
    assert len(asked) > 10
    file = server.home / "disp.sqlite"
    with (
        closing(sqlite3.connect(file, isolation_level=None)) as holder,
        server.client("admin") as client,
    ):
        holder.execute("BEGIN IMMEDIATE")
        codes = {path: client.get(path).status_code for path in asked}
        assert [record.id for record in server.checkpoints.list()] == [active.id]
        assert server.checkpoints.verify(active.id).state == "active"
        streamed = client.get(f"{JOBS}/{job_id}/events", params={"stream": "true"}).text
        holder.execute("ROLLBACK")
    # The engine of this server is not started.
    no_model = {path for path, code in codes.items() if code == 503}
    assert no_model <= {"/v1/models", "/v1/status", f"/v1/models/{active.id}"}
    assert set(codes.values()) <= {200, 503}, codes
    assert streamed.endswith("data: [DONE]\n\n")


def test_a_stream_outlasts_a_database_that_is_away(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other requests are told to come again."""
    monkeypatch.setattr(job_events, "POLL_SECONDS", 0.01)
    with running_cluster() as cluster:
        cluster.execute("CREATE DATABASE away")
        with job_server(tmp_path, tiny_checkpoint, database_url=cluster.url("away")) as server:
            job_id = create_job(server)["id"]
            follow: dict[str, Any] = {"params": {"stream": "true"}}
            with (
                server.client() as client,
                client.stream("GET", f"{JOBS}/{job_id}/events", **follow) as stream,
            ):
                lines = stream.iter_lines()
                assert any("The job was created." in line for line in lines)
                cluster.stop()
                with server.client() as other:
                    for _ in range(5):
                        away = other.get(f"{JOBS}/{job_id}")
                        assert away.status_code == 503
                        assert away.json()["error"]["code"] == "database_unavailable"
                        assert "x-should-retry" not in away.headers
                        assert int(away.headers["retry-after"]) > 0
                cluster.start()
                server.jobs.cancel(job_id)
                rest = "\n".join(lines)
            assert "The job was cancelled." in rest
            assert rest.rstrip().endswith("data: [DONE]")
