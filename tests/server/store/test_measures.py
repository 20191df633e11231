"""What a job's estimate is made of: its own pace, and that of jobs like it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from server.store.attempts import Attempt, Attempts
from server.store.database import Database
from server.store.jobs import JobError, JobRecord, JobStore

SPEC: dict[str, Any] = {
    "model": "m@sha256:0",
    "training_file": "file-1",
    "purify": {"batch_size": 2},
    "finetune": {"epochs": 2, "seed": 1},
    "evaluation": {"rows": 10},
}


@pytest.fixture
def store(database: Database) -> JobStore:
    return JobStore(database)


@pytest.fixture
def attempts(database: Database) -> Attempts:
    return Attempts(database)


@pytest.fixture
def begin(store: JobStore, attempts: Attempts) -> Callable[..., Attempt]:
    """A job with 100 planned rows, 20 of them relabelled in shards long ago, that relabels."""

    def begin(**spec: Any) -> Attempt:
        attempt = Attempt(store.create({**SPEC, **spec}, {}, key_id=None).id, 1)
        attempts.start(attempt, "plan", "plan", "running")
        attempts.planned(attempt, 100, "Planned.", {}, steps=10, answers=40)
        attempts.relabelling(attempt, {0: 20})
        attempts.start(attempt, "relabel-1", "relabel", "running")
        return attempt

    return begin


def finish(attempts: Attempts, attempt: Attempt) -> None:
    """Trains at 3 s a step and evaluates at 0.5 s an answer."""
    attempts.relabelled(attempt)
    attempts.start(attempt, "tune", "tune", "running")
    attempts.tuning_progress(attempt, 9, 10, 3.0)
    attempts.tuning_progress(attempt, 10, 10, 0.0)
    attempts.evaluated(attempt, 20.0)
    attempts.succeed(attempt, "Done.", {})


def test_the_first_job_knows_its_end_once_it_trains(
    store: JobStore, attempts: Attempts, begin: Callable[..., Attempt]
) -> None:
    attempt = begin()
    assert estimates(store.get(attempt.job_id)) == (False, False)
    attempts.shard_progress(attempt, 1, 40)
    assert estimates(store.get(attempt.job_id)) == (True, False), "no step is measured"
    attempts.relabelled(attempt)
    attempts.start(attempt, "tune", "tune", "running")
    attempts.tuning_progress(attempt, 1, 8)
    assert estimates(store.get(attempt.job_id)) == (False, False)
    attempts.tuning_progress(attempt, 2, 8, 600.0)
    before = time.time()
    progress = store.get(attempt.job_id).progress
    assert progress.stage_finish is not None
    assert progress.job_finish is not None
    assert before + 600 <= progress.stage_finish <= time.time() + 600
    rate = progress.rows_per_second
    assert rate is not None
    assert progress.job_finish - progress.stage_finish == pytest.approx(40 / rate)


def test_a_job_learns_from_one_like_it(
    store: JobStore, attempts: Attempts, begin: Callable[..., Attempt]
) -> None:
    finish(attempts, begin())
    attempt = begin(finetune={"epochs": 2, "seed": 9})
    attempts.shard_progress(attempt, 1, 40)
    progress = store.get(attempt.job_id).progress
    assert progress.stage_finish is not None
    assert progress.job_finish is not None
    assert progress.job_finish - progress.stage_finish == pytest.approx(10 * 3.0 + 40 * 0.5)
    attempts.relabelled(attempt)
    attempts.start(attempt, "evaluate", "evaluate", "running")
    progress = store.get(attempt.job_id).progress
    assert progress.stage_finish == progress.job_finish
    assert progress.job_finish == pytest.approx(time.time() + 20, abs=15)
    attempts.fail(attempt, JobError("worker_lost", "It died."))
    assert estimates(store.get(attempt.job_id)) == (False, False)


@pytest.mark.parametrize(
    "other", [{"model": "n@sha256:1"}, {"finetune": {"epochs": 3}}], ids=["model", "settings"]
)
def test_a_job_learns_nothing_from_another_kind(
    other: dict[str, Any], store: JobStore, attempts: Attempts, begin: Callable[..., Attempt]
) -> None:
    finish(attempts, begin(**other))
    attempt = begin()
    attempts.shard_progress(attempt, 1, 40)
    assert estimates(store.get(attempt.job_id)) == (True, False)


def estimates(job: JobRecord) -> tuple[bool, bool]:
    """Whether the ends of the stage and of the job are known."""
    return job.progress.stage_finish is not None, job.progress.job_finish is not None
