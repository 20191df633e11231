"""The tables of purification jobs."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from server.store.database import metadata

_ID = String(64)

jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", _ID, nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("status", String(24), nullable=False, index=True),
    Column("stage", String(24)),
    # A job that is paused and resumed runs again under the next attempt; whatever still works
    # for an older one is refused.
    Column("attempt", Integer, nullable=False),
    # The attempt that the job engine has, and the pipeline version it was handed over for.
    Column("dispatched", Integer),
    Column("pipeline", Integer),
    Column("approved", Boolean, nullable=False),
    Column("key_id", String(128)),
    Column("idempotency_key", String(255)),
    # Of the request that came with the key, as it was sent.
    Column("request_sha256", String(64)),
    Column("spec", Text, nullable=False),
    Column("sources", Text, nullable=False),
    Column("rows_total", Integer),
    Column("relabel_started_at", Float),
    Column("relabel_finished_at", Float),
    Column("relabel_rows_before", Integer, nullable=False),
    Column("tuning", Text),
    Column("result", String(255)),
    Column("error", Text),
    Column("last_event", Integer, nullable=False),
    UniqueConstraint("key_id", "idempotency_key"),
)

events = Table(
    "job_events",
    metadata,
    Column("job_id", _ID, ForeignKey("jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("created_at", Float, nullable=False),
    Column("level", String(8), nullable=False),
    Column("type", String(16), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", Text, nullable=False),
)

shards = Table(
    "job_shards",
    metadata,
    Column("job_id", _ID, ForeignKey("jobs.id"), primary_key=True),
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("rows_done", Integer, nullable=False),
    Column("finished", Boolean, nullable=False),
)

starts = Table(
    "job_starts",
    metadata,
    Column("job_id", _ID, ForeignKey("jobs.id"), primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("step", String(64), primary_key=True),
    Column("count", Integer, nullable=False),
)

measures = Table(
    "job_measures",
    metadata,
    Column("job_id", _ID, ForeignKey("jobs.id"), primary_key=True),
    # Planned: optimizer steps, and answers of the evaluation.
    Column("steps", Integer),
    Column("answers", Integer),
    # Measured.
    Column("trained_tokens", BigInteger),
    Column("step_seconds", Float),
    Column("evaluation_seconds", Float),
)
