"""A fine-tuning is paused and cancelled at random moments: no process of it is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.store.jobs import JobRecord
from tests.support.job_worker import TRAININGS_FILE, Forge, wait_for
from tests.support.jobs import FINETUNE, Site

LONG = {**FINETUNE, "epochs": 10_000}
"""Far more steps than are taken in this test: no training ends by itself."""
PAUSES = 3


@pytest.fixture(params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, open_site: Callable[..., Site]) -> Site:
    if request.param == "sqlite":
        return open_site()
    return open_site(request.getfixturevalue("postgres_url"))


def running(site: Site, job: JobRecord) -> list[int]:
    """Trainings that were started for a job and live."""
    file = site.home.jobs / job.id / "tuning" / TRAININGS_FILE
    started = [int(line) for line in file.read_text().split()] if file.is_file() else []
    return [pid for pid in started if Path(f"/proc/{pid}").exists()]


def begun_at(site: Site, job: JobRecord) -> list[int]:
    """The steps that its trainings went from."""
    events = site.service.events(job.id, limit=100_000)
    return [event.data["step"] for event in events if event.data.get("event") == "started"]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_training_that_is_paused_or_cancelled_at_any_moment_ends(
    forge: Forge, site: Site, tiny_checkpoint: Path, labels: Path, seed: int
) -> None:
    job = site.submit(tiny_checkpoint, labels, finetune=LONG)
    worker = forge.start(site.config(), {"seed": seed, "pauses": PAUSES})

    def status() -> Any:
        assert worker.alive()
        now = site.service.get(job.id)
        assert now.status != "failed", now.error
        return now.status

    for _ in range(PAUSES):
        wait_for(lambda: status() == "paused", "the pause")
        wait_for(lambda: not running(site, job), "the end of the paused training")
        site.service.resume(job.id)
    wait_for(lambda: status() == "cancelled", "the cancellation")
    wait_for(lambda: not running(site, job), "the end of the cancelled training")
    # A resumed training went on from what the paused one had saved.
    steps = begun_at(site, job)
    assert steps == sorted(steps)
    # The worker is free for other jobs.
    other = site.submit(tiny_checkpoint, labels)
    wait_for(lambda: site.seen(other, message="Shard 0 "), "a shard of another job")
    site.service.cancel(other.id)
