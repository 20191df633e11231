"""The service's own tables: one SQLite file, or PostgreSQL for several machines.

Every module of this room declares its tables on `metadata` and works inside
`Database.transaction`. Tables of the job engine are not read from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

metadata = MetaData()
"""Every table of the service."""

_BUSY_SECONDS = 30
_IDLE_LIMIT = "idle_in_transaction_session_timeout=30s"
_CREATION_LOCK = 0x64697370
_READS = "disp_reads"


class Database:
    """A connection pool on one database URL.

    Args:
        url: `sqlite:///path/to/file.sqlite` or `postgresql+psycopg://user@host/name`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        # A process that is frozen inside a transaction must not hold its locks for ever.
        limits = {} if self.is_sqlite else {"options": f"-c {_IDLE_LIMIT}"}
        self.engine: Engine = create_engine(url, pool_pre_ping=True, connect_args=limits)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin)

    @property
    def is_sqlite(self) -> bool:
        return make_url(self.url).get_backend_name() == "sqlite"

    def create_tables(self) -> None:
        """Creates the tables that are missing; processes that do it at once take turns."""
        with self.engine.begin() as connection:
            if not self.is_sqlite:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CREATION_LOCK})")
            metadata.create_all(connection)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction: committed at the end, undone by an exception.

        On SQLite it takes the write lock at once, so that what is read inside stays true.
        """
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads, and waits for no writer."""
        reader = self.engine.execution_options(**{_READS: True})
        with reader.begin() as connection:
            yield connection

    def close(self) -> None:
        """Closes every pooled connection."""
        self.engine.dispose()


class DatabaseError(Exception):
    """The database cannot be used; the message says what to do."""


def open_database(url: str) -> Database:
    """Connects to a database and creates the tables that are missing.

    Raises:
        DatabaseError: If that is impossible.
    """
    try:
        database = Database(url)
        database.create_tables()
    except (SQLAlchemyError, ImportError, OSError) as error:
        raise DatabaseError(
            f"The database cannot be opened ({type(error).__name__}): check --database-url, which "
            "is sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME, or the data folder."
        ) from None
    return database


def _prepare_sqlite(connection: Any, record: Any) -> None:
    # The driver's own transactions begin too late for a read that decides a write.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    reads = connection.get_execution_options().get(_READS, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
