"""The tables as they were before schema versions.

A database without a version may lack some of them: what is there stays as it is.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

revision = "0001"
down_revision = None

_ID = String(64)


def upgrade() -> None:
    """Creates the tables that are missing."""
    _tables().create_all(op.get_bind())


def downgrade() -> None:
    """Removes every table."""
    _tables().drop_all(op.get_bind())


def _tables() -> MetaData:
    tables = MetaData()
    _jobs(tables)
    _checkpoints(tables)
    _audit(tables)
    _processes(tables)
    return tables


def _jobs(tables: MetaData) -> None:
    Table(
        "jobs",
        tables,
        Column("number", Integer, primary_key=True, autoincrement=True),
        Column("id", _ID, nullable=False, unique=True),
        Column("created_at", Float, nullable=False),
        Column("finished_at", Float),
        Column("status", String(24), nullable=False, index=True),
        Column("stage", String(24)),
        Column("attempt", Integer, nullable=False),
        Column("dispatched", Integer),
        Column("pipeline", Integer),
        Column("approved", Boolean, nullable=False),
        Column("key_id", String(128)),
        Column("idempotency_key", String(255)),
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
    Table(
        "job_events",
        tables,
        Column("job_id", _ID, ForeignKey("jobs.id"), primary_key=True),
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("created_at", Float, nullable=False),
        Column("level", String(8), nullable=False),
        Column("type", String(16), nullable=False),
        Column("message", Text, nullable=False),
        Column("data", Text, nullable=False),
    )
    _parts_of_jobs(tables)


def _parts_of_jobs(tables: MetaData) -> None:
    Table(
        "job_shards",
        tables,
        Column("job_id", _ID, ForeignKey("jobs.id"), primary_key=True),
        Column("shard", Integer, primary_key=True, autoincrement=False),
        Column("rows_done", Integer, nullable=False),
        Column("finished", Boolean, nullable=False),
    )
    Table(
        "job_starts",
        tables,
        Column("job_id", _ID, ForeignKey("jobs.id"), primary_key=True),
        Column("attempt", Integer, primary_key=True, autoincrement=False),
        Column("step", String(64), primary_key=True),
        Column("count", Integer, nullable=False),
    )
    Table(
        "job_measures",
        tables,
        Column("job_id", _ID, ForeignKey("jobs.id"), primary_key=True),
        Column("steps", Integer),
        Column("answers", Integer),
        Column("trained_tokens", BigInteger),
        Column("step_seconds", Float),
        Column("evaluation_seconds", Float),
    )
    Table(
        "files",
        tables,
        Column("number", Integer, primary_key=True, autoincrement=True),
        Column("id", _ID, nullable=False, unique=True),
        Column("created_at", Float, nullable=False),
        Column("filename", String(255), nullable=False),
        Column("purpose", String(32), nullable=False),
        Column("bytes", BigInteger, nullable=False),
        Column("sha256", String(64), nullable=False),
        Column("key_id", String(128)),
        Column("content", String(64), nullable=False, index=True),
    )


def _checkpoints(tables: MetaData) -> None:
    Table(
        "checkpoints",
        tables,
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
    Table(
        "slots",
        tables,
        Column("deployment", String, primary_key=True),
        Column("active", String, nullable=False),
        Column("previous", String),
        Column("changed_at", Float, nullable=False),
    )


def _audit(tables: MetaData) -> None:
    Table(
        "audit",
        tables,
        Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
        Column("at", Float, nullable=False),
        Column("actor", String, nullable=False),
        Column("key_id", String),
        Column("action", String, nullable=False),
        Column("object", String, nullable=False),
        Column("before", String),
        Column("after", String),
        Column("request_id", String),
        Column("previous_hash", String(64), nullable=False),
        Column("hash", String(64), nullable=False),
    )
    Table(
        "audit_head",
        tables,
        Column("id", Integer, primary_key=True),
        Column("number", BigInteger, nullable=False),
        Column("hash", String(64), nullable=False),
    )


def _processes(tables: MetaData) -> None:
    Table(
        "deployments",
        tables,
        Column("id", String, primary_key=True),
        Column("deployment", String, nullable=False),
        Column("checkpoint", String, nullable=False),
        Column("requested_by", String, nullable=False),
        Column("state", String, nullable=False),
        Column("reason", Text),
        Column("server", String),
        Column("created_at", Float, nullable=False),
    )
    Table(
        "servers",
        tables,
        Column("id", String, primary_key=True),
        Column("deployment", String, nullable=False),
        Column("checkpoint", String, nullable=False),
        Column("seen_at", Float, nullable=False),
    )
    Table(
        "workers",
        tables,
        Column("executor", String(160), primary_key=True),
        Column("name", String(128), nullable=False, index=True),
        Column("machine", String(255), nullable=False),
        Column("pid", Integer, nullable=False),
        Column("born", String(32), nullable=False),
        Column("device", String(32), nullable=False),
        Column("started_at", Float, nullable=False),
        Column("beat_at", Float, nullable=False),
        Column("state", String(16), nullable=False, index=True),
        Column("reaper", String(160)),
    )
