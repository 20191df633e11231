"""What the plan says about the stages after the relabelling comes true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from server.jobs.job import Job
from server.jobs.planned import planned_answers, planned_steps
from server.jobs.spec import JobSpec, Sources
from tests.support.jobs import Site

PLAN = {"rows": 30, "bad": [[3, "malformed"], [4, "malformed"]], "test_rows": 9}


def job(**changes: Any) -> Job:
    spec = JobSpec(model="m", training_file="file-1", **changes)
    return Job("ftjob-1", spec, Sources(Path(), Path()))


def test_further_prompts_and_epochs_make_steps() -> None:
    finetune = {"epochs": 3, "batch_size": 10}
    assert planned_steps(job(finetune=finetune, purify={}), PLAN) == 3 * 3
    further = {"further_prompts": ["A?", "B?"]}
    assert planned_steps(job(finetune=finetune, purify=further), PLAN) == 3 * 9
    dropping = {**further, "policy": "drop_flagged"}
    assert planned_steps(job(finetune=finetune, purify=dropping), PLAN) == 3 * 3


def test_both_models_answer_every_drawn_row() -> None:
    assert planned_answers(job(evaluation={"rows": 100}), PLAN) == 2 * (2 * 28 + 9)
    attack = {
        "rows": 5,
        "test_rows": 4,
        "trigger": {"name": "corner_patch"},
        "target": "insertion",
    }
    assert planned_answers(job(evaluation=attack), PLAN) == 2 * (2 * 5 + 2 * 4)
    assert planned_answers(job(evaluation={"rows": 5}), {**PLAN, "test_rows": 0}) == 20


def test_the_steps_were_those_of_the_training(
    undisturbed: tuple[Site, str, dict[str, Any]],
) -> None:
    site, job_id, _ = undisturbed
    record = site.service.get(job_id)
    plan = json.loads((site.home.jobs / job_id / "plan.json").read_text())
    assert planned_steps(Job.of(record), plan) == record.progress.steps_total
