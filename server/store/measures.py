"""What was planned and measured in a job, and what that tells about another one."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, func, select, update

from server.store.checkpoint_tables import checkpoints
from server.store.estimate import Remaining
from server.store.job_tables import events, jobs, measures

_LOOKED_BACK = 20


def note(connection: Connection, job_id: str, **values: Any) -> None:
    """Writes some of a job's measures; the others stay."""
    change = update(measures).where(measures.c.job_id == job_id).values(**values)
    if connection.execute(change).rowcount == 0:
        connection.execute(measures.insert().values(job_id=job_id, **values))


def measures_of(connection: Connection, job_id: str) -> Mapping[str, Any]:
    """A job's measures; empty if it has none."""
    row = connection.execute(select(measures).where(measures.c.job_id == job_id)).first()
    return {} if row is None else dict(row._mapping)


def remaining(
    connection: Connection,
    job: Any,
    measured: Mapping[str, Any],
    *,
    rows: int | None,
    rate: float | None,
    tuning: Mapping[str, Any] | None,
) -> Remaining:
    """What a job still has to do.

    Args:
        connection: In a transaction.
        job: Its row.
        measured: Its measures.
        rows: Rows to relabel.
        rate: Rows a second.
        tuning: What its fine-tuning has told last.
    """
    step_seconds = None if tuning is None else tuning.get("step_seconds")
    answer_seconds = None
    if job.stage in ("relabel", "merge", "tune", "evaluate"):
        past_step, past_answer = _past(connection, job)
        step_seconds = step_seconds or past_step
        answer_seconds = past_answer or (1 / rate if rate else None)
    steps = measured.get("steps")
    if tuning is not None:
        steps = tuning["steps_total"] - tuning["steps_done"]
    return Remaining(
        stage=job.stage,
        rows=rows,
        rows_per_second=rate,
        steps=steps,
        step_seconds=step_seconds,
        answers=measured.get("answers"),
        answer_seconds=answer_seconds,
        evaluation_began=_began(connection, job) if job.stage == "evaluate" else None,
    )


def _past(connection: Connection, job: Any) -> tuple[float | None, float | None]:
    """Seconds of a step and of an evaluation's answer in the last jobs like this one.

    Alike are jobs on one base with the same settings of that stage.
    """
    spec = json.loads(job.spec)
    base = _base(connection, spec["model"])
    found = connection.execute(
        select(jobs.c.spec, measures)
        .join(measures, measures.c.job_id == jobs.c.id)
        .where(jobs.c.number < job.number, measures.c.step_seconds.is_not(None))
        .order_by(jobs.c.number.desc())
        .limit(_LOOKED_BACK)
    ).all()
    step = answer = None
    for row in found:
        other = json.loads(row.spec)
        if _base(connection, other["model"]) != base:
            continue
        if step is None and _same(spec, other, "finetune"):
            step = float(row.step_seconds)
        timed = row.evaluation_seconds is not None and row.answers
        if answer is None and timed and _same(spec, other, "purify", "evaluation"):
            answer = float(row.evaluation_seconds / row.answers)
    return step, answer


def _base(connection: Connection, model: str) -> str:
    """The full weights below a checkpoint; itself where it is not known here."""
    found = connection.execute(select(checkpoints.c.base).where(checkpoints.c.id == model)).scalar()
    return found or model


def _same(one: Mapping[str, Any], other: Mapping[str, Any], *names: str) -> bool:
    return all({**one[name], "seed": None} == {**other[name], "seed": None} for name in names)


def _began(connection: Connection, job: Any) -> float:
    query = select(func.max(events.c.created_at)).where(
        events.c.job_id == job.id, events.c.message == f"Stage {job.stage} begins."
    )
    return float(connection.execute(query).scalar() or time.time())
