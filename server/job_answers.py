"""Jobs, their events and checkpoints as the API shows them."""

from __future__ import annotations

from dataclasses import asdict

from server.errors import InvalidRequest
from server.job_requests import settings_of
from server.jobs.service import Event, JobRecord
from server.schemas.jobs import (
    Job,
    JobCheckpoint,
    JobCheckpointMetrics,
    JobErrorBody,
    JobEvent,
    JobHyperparameters,
    JobMethod,
    JobProgress,
)
from server.store.checkpoint_tables import CheckpointRecord


def job_body(record: JobRecord) -> Job:
    """The job object."""
    spec, progress, error = record.spec, record.progress, record.error
    return Job(
        id=record.id,
        created_at=int(record.created_at),
        finished_at=_seconds(record.finished_at),
        status=record.status,
        stage=record.stage,
        model=record.model,
        training_file=record.training_file,
        validation_file=spec["validation_file"],
        fine_tuned_model=record.result,
        result_files=list(record.result_files),
        trained_tokens=record.trained_tokens if record.status == "succeeded" else None,
        seed=spec["seed"],
        suffix=spec["suffix"],
        metadata=spec["metadata"],
        method=JobMethod(disp=settings_of(spec)),
        hyperparameters=JobHyperparameters(
            n_epochs=spec["finetune"].get("epochs"), batch_size=spec["finetune"].get("batch_size")
        ),
        progress=JobProgress(
            rows_done=progress.rows_done,
            rows_total=progress.rows_total,
            rows_per_second=progress.rows_per_second,
            steps_done=progress.steps_done,
            steps_total=progress.steps_total,
            estimated_finish=_seconds(progress.stage_finish),
        ),
        estimated_finish=_seconds(progress.job_finish),
        error=None if error is None else JobErrorBody(**asdict(error)),
    )


def event_body(event: Event) -> JobEvent:
    """The event object."""
    return JobEvent(
        id=event.id,
        number=event.number,
        created_at=int(event.created_at),
        level=event.level,
        type=event.type,
        message=event.message,
        data=dict(event.data),
    )


def checkpoint_body(record: CheckpointRecord, job: JobRecord) -> JobCheckpoint:
    """The checkpoint that a job made."""
    steps = job.progress.steps_total
    return JobCheckpoint(
        id=record.id,
        created_at=record.created_at,
        fine_tuned_model_checkpoint=record.id,
        fine_tuning_job_id=job.id,
        step_number=steps or 0,
        metrics=JobCheckpointMetrics(step=steps),
        state=record.state,
        gate_passed=record.gate_passed,
        gate_reasons=list(record.gate_reasons),
        evaluation=dict(record.metrics),
    )


def event_number(event_id: str, job_id: str, param: str) -> int:
    """The number of an event in its job.

    Raises:
        InvalidRequest: If the id is not one of this job's events.
    """
    prefix, _, number = event_id.rpartition(".")
    if prefix != job_id or not number.isascii() or not number.isdigit() or len(number) > 9:
        raise InvalidRequest(f"{param} must be the id of an event of this job.", param=param)
    return int(number)


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)
