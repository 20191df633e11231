"""One forge of workers, one small data set and one undisturbed job for all tests of jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.job_worker import Forge, running_forge, wait_for
from tests.support.jobs import Site, recorded_as_done, write_rows
from tests.support.postgres import postgres_cluster, postgres_url

__all__ = ["postgres_cluster", "postgres_url"]


@pytest.fixture(scope="session")
def forge(tiny_checkpoint: Path) -> Iterator[Forge]:
    with running_forge(tiny_checkpoint) as forge:
        yield forge


@pytest.fixture(scope="session")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def open_site(tmp_path: Path, forge: Forge) -> Iterator[Callable[..., Site]]:
    """Opens data folders; their workers are ended with them."""
    sites: list[Site] = []
    before = len(forge.workers)

    def open(url: str | None = None, name: str = "home") -> Site:
        sites.append(Site(tmp_path / name, url))
        return sites[-1]

    yield open
    for worker in forge.workers[before:]:
        worker.end()
    for site in sites:
        site.close()


@pytest.fixture
def site(open_site: Callable[..., Site]) -> Site:
    """A data folder on SQLite."""
    return open_site()


@pytest.fixture(scope="session")
def undisturbed(
    forge: Forge, tiny_checkpoint: Path, labels: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, str, dict[str, Any]]]:
    """The site, the job and the result of a job that nobody disturbed."""
    site = Site(tmp_path_factory.mktemp("undisturbed"))
    job = site.submit(tiny_checkpoint, labels)
    worker = forge.start(site.config("undisturbed"))
    ended = site.finished(job, worker)
    assert ended.status == "succeeded", ended.error
    # The job's row says so from within its last step; the engine has recorded it a moment later.
    wait_for(lambda: recorded_as_done(site), "the engine's record of the job")
    worker.end()
    yield site, job.id, site.result(job)
    site.close()
