"""Wire types of `/v1/fine_tuning/jobs`, in OpenAI's shape, and what a purification adds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.schemas.body import StoredBody
from server.schemas.defense import Seed
from server.schemas.job_settings import DispSettings

JobStatus = Literal[
    "validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"
]
DataId = Annotated[str, Field(min_length=1, max_length=128)]
ModelId = Annotated[str, Field(min_length=1, max_length=255)]
Suffix = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]


class Method(BaseModel):
    """What is done to the model: `disp`, with its settings."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["disp"] = "disp"
    disp: DispSettings = Field(default_factory=DispSettings)


class JobRequest(StoredBody):
    """Asks for a purification.

    `training_file` and `validation_file` are ids: of an upload, of a data set of the server
    (`dataset:NAME`), or `demo`. Unknown fields are refused.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    model: ModelId = "default"
    training_file: DataId
    validation_file: DataId | None = None
    method: Method = Field(default_factory=Method)
    seed: Seed | None = None
    suffix: Suffix | None = None
    metadata: Metadata | None = None


class JobProgress(BaseModel):
    """How far the relabelling is, and the fine-tuning once it has begun.

    `estimated_finish`, in Unix seconds, is when the stage in progress ends at this pace; null while
    that is unknown.
    """

    rows_done: int
    rows_total: int | None
    rows_per_second: float | None
    steps_done: int | None
    steps_total: int | None
    estimated_finish: int | None


class JobErrorBody(BaseModel):
    """Why a job failed, or what it waits for."""

    code: str
    message: str
    param: str | None = None


class JobMethod(BaseModel):
    """The settings in force, every default resolved; a request may repeat them as they are."""

    type: Literal["disp"] = "disp"
    disp: dict[str, Any]


class JobHyperparameters(BaseModel):
    """OpenAI's summary of the fine-tuning."""

    n_epochs: int | None
    batch_size: int | None


class Job(BaseModel):
    """A purification job.

    `fine_tuned_model` is the new checkpoint as soon as it is staged. `stage` is what the job
    does now: `plan`, `relabel`, `merge`, `tune`, `evaluate`, `stage`, `gate`, `activate`, or
    `approval` while it waits for a person. `result_files` are the purified data set and its side
    table; `trained_tokens` the answer tokens of the fine-tuning, over all epochs, once the job has
    succeeded. `estimated_finish` is when all its stages are done at the measured pace, null
    while that of one is unknown.
    """

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    status: JobStatus
    stage: str | None
    model: str
    training_file: str
    validation_file: str | None
    fine_tuned_model: str | None
    organization_id: str = "disp"
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    suffix: str | None
    metadata: dict[str, str]
    method: JobMethod
    hyperparameters: JobHyperparameters
    progress: JobProgress
    estimated_finish: int | None
    error: JobErrorBody | None


class JobList(BaseModel):
    """A page of jobs."""

    object: Literal["list"] = "list"
    data: list[Job]
    has_more: bool


class JobEvent(BaseModel):
    """One thing that happened in a job; `number` counts from 1 without gaps."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    number: int
    created_at: int
    level: Literal["info", "warn", "error"]
    type: Literal["message", "metrics"]
    message: str
    data: dict[str, Any]


class JobEventList(BaseModel):
    """A page of events."""

    object: Literal["list"] = "list"
    data: list[JobEvent]
    has_more: bool


class JobCheckpointMetrics(BaseModel):
    """OpenAI's metrics of a checkpoint; the evaluation's are in `evaluation`."""

    step: int | None


class JobCheckpoint(BaseModel):
    """The checkpoint that a job made, its state, and what gate and evaluation said."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: JobCheckpointMetrics
    state: str
    gate_passed: bool | None
    gate_reasons: list[str]
    evaluation: dict[str, Any]


class JobCheckpointList(BaseModel):
    """The checkpoints of a job: one or none."""

    object: Literal["list"] = "list"
    data: list[JobCheckpoint]
    first_id: str | None
    last_id: str | None
    has_more: Literal[False] = False
