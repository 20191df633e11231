"""The service's own tables: one SQLite file, or PostgreSQL for several machines.

Every module of this room declares its tables on `metadata` and works inside
`Database.transaction` or `Database.reading`. Tables of the job engine are not read from here.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, RootTransaction, Table, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from server.errors import DatabaseUnavailable
from server.store.outages import is_transient, patiently
from server.store.schema import UnknownVersion, upgrade

metadata = MetaData()
"""Every table of the service."""

LOCK_SECONDS = 30.0
"""How long a statement waits for a lock that somebody else holds."""

_RETRY_AFTER = 5
_OUTCOME_SECONDS = 5.0
_OUTCOME_PAUSE = 0.1
_READS = "disp_reads"
_WAIT = "disp_wait"
_LIMITS = {
    # A process that is frozen inside a transaction must not hold its locks for ever.
    "options": f"-c idle_in_transaction_session_timeout=30s -c lock_timeout={LOCK_SECONDS:.0f}s",
    # A machine that is gone without a word must not be waited for either.
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,
}


class Database:
    """A connection pool on one database URL.

    Args:
        url: `sqlite:///path/to/file.sqlite` or `postgresql+psycopg://user@host/name`.
        patience: Seconds for which the methods of the store go on trying while the database is
            away; 0 tries once.
        lock_wait: Seconds that a transaction waits for SQLite's write lock.
    """

    def __init__(self, url: str, *, patience: float = 0.0, lock_wait: float = LOCK_SECONDS) -> None:
        self.url = url
        self.patience = patience
        self._lock_wait = lock_wait
        # SQLite: whoever waits for the write lock must not keep readers from a connection.
        sizes: dict[str, Any] = {"max_overflow": -1} if self.is_sqlite else {}
        limits = {} if self.is_sqlite else _LIMITS
        self.engine: Engine = create_engine(url, pool_pre_ping=True, connect_args=limits, **sizes)
        if self.is_sqlite:
            event.listen(self.engine, "connect", self._prepare_sqlite)
            event.listen(self.engine, "begin", self._begin_sqlite)

    @property
    def is_sqlite(self) -> bool:
        return make_url(self.url).get_backend_name() == "sqlite"

    def with_patience(self, seconds: float) -> Database:
        """The same database, for somebody who has another patience."""
        other = copy.copy(self)
        other.patience = seconds
        return other

    def create_tables(self) -> None:
        """Brings the tables to this version's schema; see `server.store.schema`.

        Raises:
            UnknownVersion: If a later version of the service made them.
        """
        upgrade(self.engine)

    @contextmanager
    def transaction(self, *, wait: float | None = None) -> Iterator[Connection]:
        """One transaction: committed at the end, undone by an exception.

        On SQLite it takes the write lock at once, so that what is read inside stays true. Where it
        raises nothing has changed, unless the outcome of a commit cannot be learned in time from
        a database that went away meanwhile.

        Args:
            wait: Seconds to wait for a lock; by default the database's own limit.

        Raises:
            DatabaseUnavailable: If the database is away or locked.
        """
        with translated(), self.engine.connect() as connection:
            if wait is not None:
                connection.execution_options(**{_WAIT: wait})
            with connection.begin() as transaction:
                if wait is not None and not self.is_sqlite:
                    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {wait * 1000:.0f}")
                yield connection
                self._commit(connection, transaction)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads, all of it from one moment, and waits for no writer.

        Raises:
            DatabaseUnavailable: If the database is away.
        """
        options: dict[str, Any] = {_READS: True}
        if not self.is_sqlite:
            options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        reader = self.engine.execution_options(**options)
        with translated(), reader.begin() as connection:
            yield connection

    def insert(self, table: Table) -> Any:
        """An INSERT into a table that can say what to do about a row that is there."""
        return (sqlite if self.is_sqlite else postgresql).insert(table)

    def close(self) -> None:
        """Closes every pooled connection."""
        self.engine.dispose()

    def _commit(self, connection: Connection, transaction: RootTransaction) -> None:
        """Commits; a connection that breaks meanwhile leaves open whether it was done."""
        number = None
        if not self.is_sqlite:
            query = "SELECT pg_current_xact_id_if_assigned()::text"
            number = connection.exec_driver_sql(query).scalar()
        try:
            transaction.commit()
        except DBAPIError as error:
            if number is None or not is_transient(error) or not self._was_committed(str(number)):
                raise

    def _was_committed(self, number: str) -> bool:
        """Asks PostgreSQL, once it answers, what became of a transaction."""
        deadline = time.monotonic() + max(self.patience, _OUTCOME_SECONDS)
        query = "SELECT pg_xact_status(%s::xid8)"
        while True:
            try:
                with self.reading() as connection:
                    status = connection.exec_driver_sql(query, (number,)).scalar()
            except DatabaseUnavailable:
                status = "unknown"
            except DBAPIError:
                # The server that answers now has never heard of it: one that was behind the
                # other, which is gone with what had not reached this one.
                return False
            if status not in ("unknown", "in progress") or time.monotonic() > deadline:
                return bool(status == "committed")
            time.sleep(_OUTCOME_PAUSE)

    def _prepare_sqlite(self, connection: Any, record: Any) -> None:
        # The driver's own transactions begin too late for a read that decides a write.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(_busy_timeout(self._lock_wait))
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    def _begin_sqlite(self, connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get(_READS, False):
            connection.exec_driver_sql("BEGIN")
            return
        wait = options.get(_WAIT)
        if wait is None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            return
        connection.exec_driver_sql(_busy_timeout(wait))
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        finally:
            connection.exec_driver_sql(_busy_timeout(self._lock_wait))


def clock(connection: Connection) -> float:
    """The database's clock, for machines whose own clocks differ; Unix seconds."""
    if connection.dialect.name != "postgresql":
        return time.time()
    query = "SELECT extract(epoch FROM clock_timestamp())::float8"
    return float(connection.exec_driver_sql(query).scalar_one())


class DatabaseError(Exception):
    """The database cannot be used; the message says what to do."""


def open_database(url: str, *, patience: float = 0.0, lock_wait: float = LOCK_SECONDS) -> Database:
    """Connects to a database and brings its tables to this version's schema.

    Args:
        url: As `Database` takes it.
        patience: The same.
        lock_wait: The same.

    Raises:
        DatabaseError: If that is impossible, or a later version of the service made it.
    """

    def opened() -> Database:
        with translated():
            database = Database(url, patience=patience, lock_wait=lock_wait)
            try:
                database.create_tables()
            except BaseException:
                database.close()
                raise
        return database

    with explained():
        return patiently(opened, patience)


@contextmanager
def explained() -> Iterator[None]:
    """Errors of a database that is opened, as what its operator can do about them.

    Raises:
        DatabaseError: For all of them.
    """
    try:
        yield
    except UnknownVersion as error:
        raise DatabaseError(str(error)) from None
    except (SQLAlchemyError, DatabaseUnavailable, ImportError, OSError) as error:
        cause = error.__cause__ or error
        raise DatabaseError(
            f"The database cannot be opened ({type(cause).__name__}): check --database-url, which "
            "is sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME, or the data folder."
        ) from None


@contextmanager
def translated() -> Iterator[None]:
    """Errors that pass by themselves as the service's own.

    Raises:
        DatabaseUnavailable: For them; others stay as they are.
    """
    try:
        yield
    except SQLAlchemyError as error:
        if not is_transient(error):
            raise
        raise DatabaseUnavailable(retry_after=_RETRY_AFTER) from error


def _busy_timeout(seconds: float) -> str:
    return f"PRAGMA busy_timeout = {seconds * 1000:.0f}"
