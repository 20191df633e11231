"""Jobs remember the request that an idempotency key was sent with."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, String

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds the hash; jobs made before have none."""
    op.add_column("jobs", Column("request_sha256", String(64)))


def downgrade() -> None:
    """Removes it."""
    op.drop_column("jobs", "request_sha256")
