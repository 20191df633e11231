"""Pausing, resuming, cancelling, approving, and a worker that stops in good order."""

from __future__ import annotations

import fcntl
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from server.errors import JobStateConflict
from server.store.audit import Actor
from tests.support.job_worker import Forge, wait_for
from tests.support.jobs import FINETUNE, Site, write_rows

Undisturbed = tuple[Site, str, dict[str, Any]]


def is_free(lock: Path) -> bool:
    """Whether no process holds a lock, as a training does as long as it lives."""
    with lock.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


LONG = {**FINETUNE, "epochs": 10_000}


def test_g5_pause_keeps_what_is_done_and_resume_goes_on(
    forge: Forge, site: Site, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    labels = write_rows(tmp_path / "many", 60)
    job = site.submit(tiny_checkpoint, labels, shard_rows=2)
    worker = forge.start(site.config())
    wait_for(lambda: site.seen(job, message="Shard 1 "), "the second shard")
    paused = site.service.pause(job.id)
    assert paused.status == "paused"
    assert 4 <= paused.progress.rows_done < 60
    # The worker is free again once it has let go of the batch in hand: it does another job.
    other = site.submit(tiny_checkpoint, labels, shard_rows=30)
    wait_for(lambda: site.seen(other, message="Shard 0 "), "a shard of another job")
    site.service.cancel(other.id)
    kept = {name for name in site.job_files(job.id) if name.startswith("shards/")}
    assert len(kept) < 60
    assert site.service.get(job.id).status == "paused"
    resumed = site.service.resume(job.id)
    assert (resumed.status, resumed.attempt) == ("queued", 2)
    wait_for(lambda: site.seen(job, stage="merge"), "the end of the relabelling")
    assert site.service.get(job.id).progress.rows_done == 60
    computed = [
        event.data["shard"]
        for event in site.service.events(job.id, limit=1000)
        if event.data.get("computed")
    ]
    assert sorted(computed) == list(range(30))
    assert site.service.cancel(job.id).status == "cancelled"
    assert worker.alive()


def test_g5_a_training_is_paused_resumed_and_cancelled(
    forge: Forge, site: Site, tiny_checkpoint: Path, labels: Path
) -> None:
    job = site.submit(tiny_checkpoint, labels, finetune=LONG)
    forge.start(site.config())
    wait_for(lambda: site.seen(job, event="step"), "the first training step")
    site.service.pause(job.id)
    state = site.home.jobs / job.id / "tuning" / "state.safetensors"
    wait_for(state.is_file, "the state of the stopped training")
    site.service.resume(job.id)

    def gone_on() -> Any:
        started = [
            event.data["step"]
            for event in site.service.events(job.id, limit=100_000)
            if event.data.get("event") == "started"
        ]
        return len(started) == 2 and started

    first, second = wait_for(gone_on, "the training to go on")
    assert first == 0
    assert second > 0
    total = wait_for(lambda: site.service.get(job.id).progress.steps_total, "a further step")
    assert total == 20_000
    assert not is_free(state.with_name("training.lock"))
    site.service.cancel(job.id)
    wait_for(lambda: is_free(state.with_name("training.lock")), "the end of the training process")
    assert site.service.get(job.id).status == "cancelled"


def test_approval_is_waited_for(
    forge: Forge, site: Site, tiny_checkpoint: Path, labels: Path, undisturbed: Undisturbed
) -> None:
    job = site.submit(tiny_checkpoint, labels, activate="approval")
    worker = forge.start(site.config())
    waiting = site.finished(job, worker)
    assert (waiting.status, waiting.stage, waiting.error) == ("paused", "approval", None)
    assert waiting.result == undisturbed[2]["checkpoint"]
    with pytest.raises(JobStateConflict, match="waits for approval"):
        site.service.resume(job.id)
    before = site.job_files(job.id)
    site.service.approve(job.id, Actor("admin"))
    ended = site.finished(job, worker)
    assert ended.status == "succeeded"
    after = site.job_files(job.id)
    assert {name for name in before if before[name] != after[name]} <= {"report/report.html"}
    last = site.service.newest_events(job.id, limit=1)[0]
    assert "nothing was activated" in last.message


def test_a_failed_gate_leaves_the_checkpoint_staged(
    forge: Forge, site: Site, tiny_checkpoint: Path, labels: Path
) -> None:
    job = site.submit(tiny_checkpoint, labels, activate="auto", gate={"max_asr": 0.02})
    ended = site.finished(job, forge.start(site.config()))
    assert ended.status == "succeeded"
    assert ended.result is not None
    judged = site.seen(job, message="The gate is not passed.")
    assert "asr was not measured" in judged.data["verdict"]["reasons"][0]
    assert "the gate did not let it" in site.service.newest_events(job.id, limit=1)[0].message


def test_a_worker_that_is_asked_to_stop_hands_its_work_back(
    forge: Forge, site: Site, tiny_checkpoint: Path, labels: Path, undisturbed: Undisturbed
) -> None:
    job = site.submit(tiny_checkpoint, labels)
    worker = forge.start(site.config("first", takeovers=0))
    wait_for(lambda: site.seen(job, message="Shard 0 "), "the first shard")
    worker.kill(signal.SIGTERM)
    # With no takeover allowed, a step that counted as begun twice would fail the job.
    ended = site.finished(job, forge.start(site.config("second", takeovers=0)))
    assert ended.status == "succeeded", ended.error
    assert site.result(job) == undisturbed[2]


def test_bad_rows_are_told_and_too_many_fail_the_job(
    forge: Forge, site: Site, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    labels = write_rows(tmp_path / "broken", 8, bad=(2, 5))
    job = site.submit(tiny_checkpoint, labels, bad_rows=0.1)
    worker = forge.start(site.config())
    ended = site.finished(job, worker)
    assert ended.status == "failed"
    assert ended.error is not None
    assert (ended.error.code, ended.error.param) == ("unusable_data_set", "training_file")
    assert "2 of 8 rows" in ended.error.message
    tolerant = site.submit(tiny_checkpoint, labels, bad_rows=0.5)
    wait_for(lambda: site.seen(tolerant, message="The purified"), "the purified data set")
    site.service.cancel(tolerant.id)
    planned = site.seen(tolerant, message="8 rows")
    assert planned.data["reasons"] == {"missing_image": 2}
    told = [site.seen(tolerant, record=number).message for number in (2, 5)]
    assert all("none.png" in message for message in told)
    written = json.loads((site.home.jobs / tolerant.id / "merged" / "train.json").read_text())
    kept = [f"row-{n}" for n in (0, 1, 3, 4, 6, 7)]
    assert [row["id"] for row in written if "/" not in row["id"]] == kept
    assert {row["id"].partition("/")[0] for row in written} == set(kept)
