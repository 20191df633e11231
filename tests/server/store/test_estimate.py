"""When a job will be done: a sum over the stages that are left, or unknown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.store.estimate import Remaining, job_finish, stage_finish

NOW = 1000.0
ALL = Remaining(
    stage="relabel",
    rows=30,
    rows_per_second=2.0,
    steps=10,
    step_seconds=3.0,
    answers=400,
    answer_seconds=0.25,
)


def test_every_stage_that_is_left_counts() -> None:
    assert job_finish(ALL, NOW) == NOW + 15 + 30 + 100
    assert job_finish(replace(ALL, stage="merge"), NOW) == NOW + 130
    assert job_finish(replace(ALL, stage="tune"), NOW) == NOW + 130
    assert job_finish(replace(ALL, stage="tune", steps=4), NOW) == NOW + 112
    evaluating = replace(ALL, stage="evaluate", evaluation_began=NOW - 40)
    assert job_finish(evaluating, NOW) == NOW + 60


def test_the_stage_in_progress_is_estimated_by_itself() -> None:
    blind = Remaining(stage="relabel", rows=30, rows_per_second=2.0)
    assert (stage_finish(blind, NOW), job_finish(blind, NOW)) == (NOW + 15, None)
    assert stage_finish(ALL, NOW) == NOW + 15
    assert stage_finish(replace(ALL, stage="tune"), NOW) == NOW + 30
    evaluating = replace(ALL, stage="evaluate", evaluation_began=NOW - 40)
    assert stage_finish(evaluating, NOW) == NOW + 60


@pytest.mark.parametrize(
    "name",
    ["rows", "rows_per_second", "steps", "step_seconds", "answers", "answer_seconds"],
)
def test_what_nobody_measured_makes_the_whole_unknown(name: str) -> None:
    assert job_finish(replace(ALL, **{name: None}), NOW) is None


def test_what_is_done_needs_no_pace() -> None:
    done = replace(ALL, rows=0, rows_per_second=None, steps=0, step_seconds=None)
    assert job_finish(done, NOW) == NOW + 100
    tuning = replace(ALL, stage="tune", rows=None, rows_per_second=None)
    assert job_finish(tuning, NOW) == NOW + 130


@pytest.mark.parametrize("stage", [None, "plan", "stage", "gate", "activate", "approval"])
def test_stages_of_unknown_length_have_no_estimate(stage: str | None) -> None:
    assert job_finish(replace(ALL, stage=stage), NOW) is None
    assert stage_finish(replace(ALL, stage=stage), NOW) is None


def test_an_evaluation_that_takes_longer_is_not_about_to_end() -> None:
    late = replace(ALL, stage="evaluate", evaluation_began=NOW - 101)
    assert (stage_finish(late, NOW), job_finish(late, NOW)) == (None, None)
