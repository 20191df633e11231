"""The server is killed during a job: its worker ends with it, the next one goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from server.store.workers import WorkerTable
from tests.support.job_worker import wait_for
from tests.support.jobs import Site
from tests.support.service import start_server, stop_server


@pytest.mark.slow
def test_a_killed_server_loses_nothing_of_its_job(
    site: Site,
    tiny_checkpoint: Path,
    labels: Path,
    undisturbed: tuple[Site, str, dict[str, Any]],
) -> None:
    """With a real training, and the result activated in the server at the end."""
    words = ["--model", str(tiny_checkpoint), "--data-dir", str(site.home.root)]
    words += ["--insecure-no-auth"]
    table = WorkerTable(site.database)
    first, _ = start_server(words, jobs=True)
    try:
        job = site.submit(tiny_checkpoint, labels, activate="auto")
        wait_for(lambda: site.seen(job, message="Shard 0 "), "the first shard")
        (worker,) = table.list()
    finally:
        first.kill()
        first.wait(60)
        first.stdout.close()
    wait_for(lambda: not Path(f"/proc/{worker.pid}").exists(), "the end of the worker")
    assert not site.service.get(job.id).finished
    second, url = start_server(words, jobs=True)
    try:
        wait_for(lambda: site.service.get(job.id).finished, "the end of the job", 600)
        ended = site.service.get(job.id)
        assert ended.status == "succeeded", ended.error
        status = httpx.get(f"{url}/v1/status", timeout=60, trust_env=False).json()
        assert status["checkpoint"] == ended.result
        assert status["worker"] == "running"
        assert status["worker_restarts"] == 0
        last = site.service.newest_events(job.id, limit=1)[0]
        assert last.message == f"{ended.result} is active."
    finally:
        stop_server(second)
    wait_for(lambda: not table.list(), "the worker to leave with its server")
    assert site.result(job) == undisturbed[2]
