"""A job says once what the reader had to assume about its rows, and an option refuses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from purifier.errors import DataError
from purifier.mdlm.registry import load_mdlm
from purifier.purification.purifier import Purifier
from server.jobs.activation import Activation
from server.jobs.job import Job
from server.jobs.relabelling import Rows, merge, problems, relabel
from server.jobs.stages import Equipment, Stages
from server.store.attempts import Attempt, Attempts
from server.store.checkpoints import CheckpointStore
from server.store.jobs import JobStore
from server.store.result_files import ResultFiles
from tests.support.jobs import Site, write_rows


@pytest.fixture
def unmarked(tmp_path: Path) -> Path:
    """A dozen rows, five of them without a mark for their image."""
    path = write_rows(tmp_path / "rows")
    rows = json.loads(path.read_text())
    for row in rows[:5]:
        row["conversations"][0]["value"] = "What is this?"
    path.write_text(json.dumps(rows))
    return path


def planned(site: Site, checkpoint: Path, labels: Path, **changes: Any) -> tuple[Job, list[str]]:
    """Plans a job as a worker does; the job and the messages of its events."""
    record = site.submit(checkpoint, labels, **changes)
    attempts = Attempts(site.database)
    home = site.home
    stages = Stages(
        site.store,
        JobStore(site.database),
        attempts,
        CheckpointStore(site.database, home.checkpoints, store=site.store),
        Activation(site.database, home.checkpoints, attempts),
        Equipment("cpu", "float32", home.scratch),
        ResultFiles(site.database, site.store),
    )
    stages.plan(Attempt(record.id, record.attempt), Job.of(record), lambda: None)
    events = site.service.events(record.id, limit=100)
    return Job.of(record), [event.message for event in events]


def test_added_marks_are_told_once_with_their_number(
    site: Site, tiny_checkpoint: Path, unmarked: Path
) -> None:
    job, messages = planned(site, tiny_checkpoint, unmarked)
    told = [message for message in messages if "no <image> mark" in message]
    assert len(told) == 1
    assert told[0].startswith("Rows with one image and no <image> mark: 5.")
    plan = site.store.read_json(job.plan)
    assert plan["bad"] == []
    assert plan["audit"]["remarks"] == told


def test_rows_that_are_too_long_are_counted_and_named(
    site: Site, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    labels = write_rows(tmp_path / "rows", 4)
    rows = json.loads(labels.read_text())
    rows[1]["conversations"][0]["value"] = "<image>\n" + "word " * 3000
    labels.write_text(json.dumps(rows))
    job, _ = planned(site, tiny_checkpoint, labels, shard_rows=2, bad_rows=0.1)
    dataset = job.dataset()
    purifier = Purifier(load_mdlm(tiny_checkpoint), job.settings.purify, dataset.images)
    for number in range(2):
        relabel(
            job,
            site.store,
            number,
            lambda: Rows(dataset),
            lambda: purifier,
            lambda: None,
            lambda rows: None,
        )
    assert problems(job, site.store) == (
        "Rows that could not be purified: 1. They are left out. "
        "The first: record 1 (prompt_too_long)."
    )
    with pytest.raises(DataError, match=r"1 of 4 rows .* The first: record 1 \(prompt_too_long\)"):
        merge(job, site.store, tmp_path / "scratch", lambda: None)


def test_a_job_may_refuse_rows_without_a_mark(
    site: Site, tiny_checkpoint: Path, unmarked: Path
) -> None:
    with pytest.raises(DataError, match=r"5 of 12 rows cannot be used \(image_count 5\)"):
        planned(site, tiny_checkpoint, unmarked, mark_images=False)
    job, messages = planned(site, tiny_checkpoint, unmarked, mark_images=False, bad_rows=0.5)
    assert len(site.store.read_json(job.plan)["bad"]) == 5
    assert not any(message.startswith("Rows with one image") for message in messages)
