"""Workers are killed in every stage; nothing that was finished is lost or done again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.store.jobs import JobRecord
from server.store.workers import WorkerTable
from tests.support.job_worker import HALTS, Forge, Worker, wait_for
from tests.support.jobs import Site

Undisturbed = tuple[Site, str, dict[str, Any]]


class Killings:
    """One job through every halt; remembers what was finished at each."""

    def __init__(self, forge: Forge, site: Site, job: JobRecord) -> None:
        self.forge = forge
        self.site = site
        self.job = job
        self.finished: dict[str, tuple[str, int]] = {}

    def look(self) -> None:
        """What was finished before is still there, untouched; what is new is remembered."""
        now = self._finished()
        assert {name: now.get(name) for name in self.finished} == self.finished
        self.finished = now

    def _finished(self) -> dict[str, tuple[str, int]]:
        """Hash and time of writing of every output that counts: files in no folder, shards with
        their manifest, folders with theirs."""
        folder = self.site.home.jobs / self.job.id
        files = self.site.job_files(self.job.id)
        counted = {}
        for name, digest in files.items():
            first, _, rest = name.partition("/")
            whole = not rest or f"{first}/manifest.json" in files
            if first == "shards":
                whole = f"shards/{rest[:5]}.json" in files
            # The verdict and the report are judged anew; they cost nothing.
            if whole and first not in ("verdict.json", "report", "tuning"):
                counted[name] = (digest, (folder / name).stat().st_mtime_ns)
        return counted


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


def test_one_worker_killed_in_every_stage(
    url: str | None,
    forge: Forge,
    open_site: Callable[..., Site],
    tiny_checkpoint: Path,
    labels: Path,
    undisturbed: Undisturbed,
) -> None:
    site = open_site(url)
    job = site.submit(tiny_checkpoint, labels)
    killings = Killings(forge, site, job)
    for halt in HALTS:
        worker = forge.start(site.config(), halt)
        worker.wait_until_halted()
        worker.kill()
        killings.look()
    worker = forge.start(site.config())
    ended = site.finished(job, worker)
    killings.look()
    assert ended.status == "succeeded", ended.error
    assert site.result(job) == undisturbed[2]


def test_two_workers_one_killed_in_every_stage(
    url: str | None,
    forge: Forge,
    open_site: Callable[..., Site],
    tiny_checkpoint: Path,
    labels: Path,
    undisturbed: Undisturbed,
) -> None:
    """The survivor takes over what the dead one had in hand, and is the next one killed."""
    site = open_site(url)
    job = site.submit(tiny_checkpoint, labels)
    killings = Killings(forge, site, job)
    table = WorkerTable(site.database)
    workers: list[Worker] = []
    for number, halt in enumerate((*HALTS, None)):
        if workers:
            workers[-1].wait_until_halted()
        workers.append(forge.start(site.config(f"worker-{number % 2}"), halt))
        for dying in workers[-2:-1]:
            wait_for(lambda: len(table.list()) == 2, "two living workers")
            dying.kill()
            killings.look()
    ended = site.finished(job, workers[-1])
    killings.look()
    assert ended.status == "succeeded", ended.error
    assert site.result(job) == undisturbed[2]
