"""Wire types of `/v1/models`, `/v1/status` and `/health`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class ModelCard(BaseModel):
    """A name a request may put into `model`; `root` is the checkpoint that it stands for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "disp"
    root: str
    parent: str | None = None


class ModelList(BaseModel):
    """Every model this server answers with."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class EngineStatus(BaseModel):
    """Counters of the engine since its start, and what it is doing now.

    `admitted` counts the requests that reached the engine's queue; each of them ends in
    `completed`, `failed` or `cancelled`. `steps` counts passes of the model that denoise,
    `request_steps` what the requests made of them: the quotient is the mean batch, and
    `largest_batch` the most requests in one. `shared_defences` counts requests that took the
    defence's work over from an identical one. Memory is the process' resident set, in bytes.
    `worker` is the process that does the jobs beside this server: `idle` without work, `running`,
    `failed` while it waits to be started again, or null with `--no-worker`.
    """

    object: Literal["status"] = "status"
    state: Literal["loading", "ready", "failed", "draining", "stopped"]
    checkpoint: str | None
    waiting: int
    running: int
    admitted: int
    completed: int
    failed: int
    cancelled: int
    refused: int
    steps: int = 0
    request_steps: int = 0
    largest_batch: int = 0
    shared_defences: int = 0
    peak_memory_bytes: int
    worker: Literal["idle", "running", "failed"] | None = None
    worker_restarts: int = 0


class Health(BaseModel):
    """Liveness and readiness."""

    status: Literal["ok", "ready"]
