"""Wire types of `/v1/checkpoints`, `/v1/deployments` and `/v1/audit`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from server.schemas.body import RequestBody

CheckpointState = Literal["staged", "verified", "active", "previous", "retired"]


class Gate(BaseModel):
    """What the gate said about a checkpoint's evaluation, and which limits it did not keep."""

    passed: bool
    reasons: list[str]


class Checkpoint(BaseModel):
    """A checkpoint of the store.

    `parent` is the checkpoint it was made from, `base` the full weights a delta stands on, `gate`
    null if nothing was evaluated.
    """

    id: str
    object: Literal["checkpoint"] = "checkpoint"
    created_at: int
    name: str
    sha256: str
    state: CheckpointState
    base: str | None
    parent: str | None
    job_id: str | None
    metrics: dict[str, Any]
    gate: Gate | None


class CheckpointList(BaseModel):
    """Every checkpoint, the latest first."""

    object: Literal["list"] = "list"
    data: list[Checkpoint]


class CheckpointDeleted(BaseModel):
    """Says that a checkpoint is gone."""

    id: str
    object: Literal["checkpoint"] = "checkpoint"
    deleted: Literal[True] = True


class Activation(RequestBody):
    """How to activate; `force` serves a checkpoint whose gate failed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    force: bool = False


class AuditEntry(BaseModel):
    """One row of the audit log; `hash` covers the row and the `previous_hash`."""

    object: Literal["audit_entry"] = "audit_entry"
    number: int
    at: float
    actor: str
    key_id: str | None
    action: str
    target: str
    before: str | None
    after: str | None
    request_id: str | None
    previous_hash: str
    hash: str


class AuditPage(BaseModel):
    """Rows in order; `has_more` says that the next page begins after the last one's number."""

    object: Literal["list"] = "list"
    data: list[AuditEntry]
    has_more: bool
