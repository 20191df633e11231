"""A database of either kind, and a store on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.store import audit, checkpoints, deployments  # noqa: F401 - their tables
from server.store.database import Database


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database with every table."""
    kind = request.param
    url = f"sqlite:///{tmp_path}/disp.sqlite"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres_url")
    database = Database(url)
    database.create_tables()
    yield database
    database.close()
