"""When a job will be done: what is left of every stage, at the pace that was measured.

A part that nobody has measured makes the whole unknown; nothing is guessed. Reading the plan,
merging, staging and activating take moments and are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Remaining:
    """What a job still has to do from its present stage on, and how fast that goes.

    Attributes:
        stage: The stage in progress; None before the first.
        rows: Rows to relabel.
        rows_per_second: Measured in this attempt.
        steps: Optimizer steps to take.
        step_seconds: Measured in this job's fine-tuning, before it in the last one like it.
        answers: Answers of the whole evaluation.
        answer_seconds: Measured in the last evaluation like it, else in this relabelling.
        evaluation_began: Unix seconds; None before it.
    """

    stage: str | None
    rows: int | None = None
    rows_per_second: float | None = None
    steps: int | None = None
    step_seconds: float | None = None
    answers: int | None = None
    answer_seconds: float | None = None
    evaluation_began: float | None = None


def stage_finish(left: Remaining, now: float) -> float | None:
    """Unix seconds at which the stage in progress ends at this pace; None if unknown."""
    seconds = _SECONDS.get(left.stage or "", _unknown)(left, now)
    return None if seconds is None else now + seconds


def job_finish(left: Remaining, now: float) -> float | None:
    """Unix seconds at which the evaluation ends, after which all is done but for moments.

    None while a part of it is unknown, and after it.
    """
    stages = list(_SECONDS)
    if left.stage not in stages:
        return None
    finish = now
    for stage in stages[stages.index(left.stage) :]:
        seconds = _SECONDS[stage](left, now)
        if seconds is None:
            return None
        finish += seconds
    return finish


def _relabel(left: Remaining, now: float) -> float | None:
    if left.rows == 0:
        return 0.0
    if left.rows is None or not left.rows_per_second:
        return None
    return left.rows / left.rows_per_second


def _merge(left: Remaining, now: float) -> float | None:
    return 0.0


def _tune(left: Remaining, now: float) -> float | None:
    if left.steps == 0:
        return 0.0
    if left.steps is None or left.step_seconds is None:
        return None
    return left.steps * left.step_seconds


def _evaluate(left: Remaining, now: float) -> float | None:
    if left.answers is None or left.answer_seconds is None:
        return None
    whole = left.answers * left.answer_seconds
    if left.evaluation_began is None:
        return whole
    rest = left.evaluation_began + whole - now
    return rest if rest > 0 else None


def _unknown(left: Remaining, now: float) -> float | None:
    return None


_SECONDS: dict[str, Callable[[Remaining, float], float | None]] = {
    "relabel": _relabel,
    "merge": _merge,
    "tune": _tune,
    "evaluate": _evaluate,
}
"""The stages that take time, in their order."""
