"""Versions of the tables: a database of an older version is brought to this one's when opened.

The steps are alembic's, in `server.store.migrations`. A database that has none of the tables, or
those of the time before there were versions, begins at the first step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

VERSION_TABLE = "disp_schema"
"""Holds the version in its one row; the job engine's tables have versions of their own."""

NEWEST = "0002"
"""The version that this code works with."""

_LOCK = 0x64697370

_log = logging.getLogger("disp.store")
# Its remarks at level INFO are about itself.
logging.getLogger("alembic").setLevel(logging.WARNING)


class UnknownVersion(Exception):
    """The database has a version that this code does not know; the message says what to do."""


def version_of(connection: Connection) -> str | None:
    """The version of a database; None before its first step."""
    return _context(connection).get_current_revision()


def upgrade(engine: Engine, version: str = NEWEST) -> None:
    """Brings a database to a version that is not older than its own, in one transaction.

    Processes that do it at once take turns. A database that has the version is only read.

    Raises:
        UnknownVersion: If a later version of the service has made its tables.
    """
    with engine.connect() as connection:
        found = _known(version_of(connection))
        connection.rollback()
    if found == version:
        return
    scripts = _scripts()
    _run(engine, lambda found, _: scripts._upgrade_revs(version, found))


def downgrade(engine: Engine, version: str) -> None:
    """Brings a database back to an older version, in one transaction; `base` removes every table.

    Raises:
        UnknownVersion: If a later version of the service has made its tables.
    """
    scripts = _scripts()
    _run(engine, lambda found, _: scripts._downgrade_revs(version, found))


def _run(engine: Engine, steps: Callable[[Any, MigrationContext], Any]) -> None:
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        found = _known(version_of(connection))
        context = _context(connection, fn=steps)
        with Operations.context(context):
            context.run_migrations()
        _log.info("The tables had version %s and now have %s.", found, version_of(connection))


def _context(connection: Connection, **options: Any) -> MigrationContext:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, **options})


@cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(Path(__file__).parent / "migrations"))


def require_version(version: str) -> None:
    """Refuses what is no version.

    Raises:
        UnknownVersion: Naming those that there are.
    """
    if version not in _versions():
        raise UnknownVersion(
            f"There is no version {version[:20]!r}; there are {', '.join(_versions())}."
        )


def _versions() -> list[str]:
    return sorted(script.revision for script in _scripts().walk_revisions())


def _known(version: str | None) -> str | None:
    if version is not None and version not in _versions():
        raise UnknownVersion(
            f"The tables have version {version!r}; this version of the service knows "
            f"{', '.join(_versions())}. Update it, or let the later version that made them go "
            f"back: disp schema downgrade {NEWEST}."
        )
    return version
