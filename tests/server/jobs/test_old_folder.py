"""A job that an older version of the service has begun is finished by this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.store.workers import WorkerTable
from tests.support.job_worker import Forge, wait_for
from tests.support.old_folders import FOLDERS, RUNNING, Folder, restored, unpacked


@pytest.mark.parametrize("archive", FOLDERS, ids=lambda path: path.name.partition(".")[0])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_job_of_an_older_version_goes_on(
    kind: str, archive: Path, forge: Forge, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Its finished shard is kept.

    The folder has no rows of the job engine for PostgreSQL: there the job is resumed.
    """
    place, url = unpacked(archive, tmp_path / "old"), None
    if kind == "postgresql":
        url = request.getfixturevalue("postgres_url")
        restored(place / "postgresql.sql", url)
    folder = Folder(place, url)
    job = folder.job(RUNNING)
    if kind == "postgresql":
        folder.service.pause(job.id)
        folder.service.resume(job.id)
    shard = next((folder.home.jobs / job.id / "shards").glob("00000.*.jsonl"))
    before = shard.stat().st_mtime_ns
    config = {"home": str(folder.home.root), "url": url, "name": "new", "models": str(place)}
    worker = forge.start(config)

    def ended() -> bool:
        assert worker.alive(), worker.log
        return folder.service.get(job.id).finished

    wait_for(ended, "the end of the job")
    worker.kill()
    done = folder.service.get(job.id)
    assert done.status == "succeeded", done.error
    assert shard.stat().st_mtime_ns == before
    assert folder.service.report_file(job.id, "json").is_file()
    if kind == "sqlite":
        assert {worker.name for worker in WorkerTable(folder.database).list()} == {"new"}
    folder.database.close()
