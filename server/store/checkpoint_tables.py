"""The tables of checkpoints, and one row of them as the rest of the service sees it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Boolean, Column, Float, Integer, String, Table, Text

from server.store.database import metadata

State = Literal["staged", "verified", "active", "previous", "retired"]

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", String, primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("base", String),
    Column("parent", String),
    Column("path", String, nullable=False),
    Column("files", Text, nullable=False),
    Column("state", String, nullable=False),
    Column("job_id", String),
    Column("metrics", Text, nullable=False),
    Column("gate_passed", Boolean),
    Column("gate_reasons", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
)

slots = Table(
    "slots",
    metadata,
    Column("deployment", String, primary_key=True),
    Column("active", String, nullable=False),
    Column("previous", String),
    Column("changed_at", Float, nullable=False),
)


@dataclass(frozen=True)
class CheckpointRecord:
    """A checkpoint of the store.

    Attributes:
        id: `name@sha256:` and 12 hex digits of its content hash.
        sha256: The whole content hash.
        base: Id of the base that a delta stands on; None for full weights.
        parent: Id of the checkpoint that it was made from.
        path: Where it lies.
        files: SHA-256 of every file by its path in the folder.
        state: See `server.store.checkpoints`; relative to the deployment of the store.
        job_id: The job that made it.
        metrics: What its evaluation measured.
        gate_passed: Whether the evaluation kept its limits; None if there was none.
        gate_reasons: Which limits it did not keep.
        created_at: Unix seconds.
    """

    id: str
    sha256: str
    base: str | None
    parent: str | None
    path: Path
    files: Mapping[str, str]
    state: State
    job_id: str | None
    metrics: Mapping[str, Any]
    gate_passed: bool | None
    gate_reasons: tuple[str, ...]
    created_at: int

    @property
    def name(self) -> str:
        """The checkpoint's name without its hash."""
        return self.id.partition("@")[0]


def record_of(row: Any, folder: Path, served: Mapping[str, State]) -> CheckpointRecord:
    """A row of `checkpoints` as the rest of the service sees it.

    Args:
        row: The row.
        folder: The store's, which paths may be relative to.
        served: `served_states` of the deployment.
    """
    values = dict(row._mapping)
    values["path"] = folder / row.path
    values["files"] = json.loads(row.files)
    values["metrics"] = json.loads(row.metrics)
    values["gate_reasons"] = tuple(json.loads(row.gate_reasons))
    values["state"] = served.get(row.id, row.state)
    return CheckpointRecord(**values)


def served_states(rows: Sequence[Any]) -> dict[str, State]:
    """State by checkpoint of what rows of `slots` point to."""
    served: dict[str, State] = {}
    for row in rows:
        if row.previous is not None:
            served.setdefault(row.previous, "previous")
        served[row.active] = "active"
    return served


def new_row(
    id: str,
    sha256: str,
    files: Mapping[str, str],
    *,
    path: Path,
    base: str | None,
    parent: str | None,
    job_id: str | None,
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """The row of a checkpoint that was staged just now; see `CheckpointRecord`."""
    return {
        "id": id,
        "sha256": sha256,
        "base": base,
        "parent": parent,
        "path": str(path),
        "files": json.dumps(dict(files)),
        "state": "staged",
        "job_id": job_id,
        "metrics": json.dumps(dict(metrics)),
        "gate_passed": None,
        "gate_reasons": "[]",
        "created_at": int(time.time()),
    }
