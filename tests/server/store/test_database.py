"""A transaction is done or undone, whatever breaks; what only reads waits for no writer."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from server.errors import DatabaseUnavailable
from server.store.audit import AuditLog
from server.store.database import Database, DatabaseError, open_database
from server.store.deployments import Deployments, servers
from server.store.outages import patiently
from server.store.workers import WorkerTable

ROW = ("alice", None, "activate", "tiny")


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Database]:
    database = Database(postgres_url, patience=30.0)
    database.create_tables()
    yield database
    database.close()


def end_session(connection: Any) -> None:
    """Ends the session of a connection, from another one."""
    number = connection.connection.dbapi_connection.info.backend_pid
    with closing(connection.engine.raw_connection()) as other:
        other.cursor().execute(f"SELECT pg_terminate_backend({number})")
        other.commit()


def once(act: Callable[..., None]) -> Callable[..., None]:
    """Does something the first time only."""
    done: list[None] = []

    def first(*arguments: Any) -> None:
        if not done:
            done.append(None)
            act(*arguments)

    return first


@contextmanager
def listening(database: Database, name: str, act: Callable[..., None]) -> Iterator[None]:
    event.listen(database.engine, name, act)
    yield
    event.remove(database.engine, name, act)


def test_a_session_that_ends_inside_a_transaction_is_begun_again(postgres: Database) -> None:
    log = AuditLog(postgres)
    log.append(*ROW)

    def before_insert(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO audit "):
            broken(connection)

    broken = once(end_session)
    with listening(postgres, "before_cursor_execute", before_insert):
        assert log.append(*ROW).number == 2
    assert log.verify().rows == 2


def test_a_session_that_ends_before_the_commit_is_begun_again(postgres: Database) -> None:
    log = AuditLog(postgres)
    log.append(*ROW)
    with listening(postgres, "commit", once(end_session)):
        assert log.append(*ROW).number == 2
    assert log.verify().rows == 2


def test_a_commit_whose_answer_is_lost_is_not_made_twice(
    postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(postgres)
    log.append(*ROW)
    dialect = postgres.engine.dialect
    commit = dialect.do_commit
    breaking = iter([True])

    def commit_and_break(connection: Any) -> None:
        wrote = connection.driver_connection.info.transaction_status.name == "INTRANS"
        commit(connection)
        if wrote and next(breaking, False):
            with closing(postgres.engine.raw_connection()) as other:
                pid = connection.driver_connection.info.backend_pid
                other.cursor().execute(f"SELECT pg_terminate_backend({pid})")
            connection.driver_connection.execute("SELECT 1")  # it notices that

    monkeypatch.setattr(dialect, "do_commit", commit_and_break)
    assert log.append(*ROW).number == 2
    assert next(breaking, None) is None
    assert log.verify().rows == 2


def test_a_commit_that_a_new_server_has_never_heard_of_is_made_again(
    postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failover the server that answers may lie behind the one that is gone."""
    log = AuditLog(postgres)
    log.append(*ROW)
    dialect = postgres.engine.dialect
    commit = dialect.do_commit
    breaking = iter([True])
    asked = re.compile(r"pg_current_xact_id_if_assigned\(\)")

    def break_instead(connection: Any) -> None:
        wrote = connection.driver_connection.info.transaction_status.name == "INTRANS"
        if wrote and next(breaking, False):
            with closing(postgres.engine.raw_connection()) as other:
                pid = connection.driver_connection.info.backend_pid
                other.cursor().execute(f"SELECT pg_terminate_backend({pid})")
            connection.driver_connection.execute("SELECT 1")  # it notices that
        commit(connection)

    def count_further(
        connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any
    ) -> tuple[str, Any]:
        later = "(pg_current_xact_id_if_assigned()::text::bigint + 1000000)::text::xid8"
        return asked.sub(later, statement), parameters

    monkeypatch.setattr(dialect, "do_commit", break_instead)
    event.listen(postgres.engine, "before_cursor_execute", count_further, retval=True)
    assert log.append(*ROW).number == 2
    event.remove(postgres.engine, "before_cursor_execute", count_further)
    assert next(breaking, None) is None
    assert log.verify().rows == 2


@contextmanager
def locked(file: Path) -> Iterator[None]:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def test_a_lock_that_is_held_for_too_long_is_an_error_of_the_service(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/disp.sqlite", lock_wait=0.05)
    database.create_tables()
    with locked(tmp_path / "disp.sqlite"):
        with pytest.raises(DatabaseUnavailable) as caught:
            AuditLog(database).append(*ROW)
        assert caught.value.retry_after is not None
        assert AuditLog(database).list() == []
    assert AuditLog(database).append(*ROW).number == 1
    database.close()


def test_one_transaction_may_wait_for_less(tmp_path: Path) -> None:
    """The others still wait for as long as the database says."""
    database = Database(f"sqlite:///{tmp_path}/disp.sqlite", lock_wait=600.0)
    database.create_tables()
    with (
        locked(tmp_path / "disp.sqlite"),
        pytest.raises(DatabaseUnavailable),
        database.transaction(wait=0.05),
    ):
        pass
    with database.transaction(wait=0.05) as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 600_000
    database.close()


def test_a_lock_of_postgresql_is_waited_for_as_long_as_was_said(postgres: Database) -> None:
    with postgres.transaction() as holder:
        holder.exec_driver_sql("LOCK TABLE audit_head")
        with pytest.raises(DatabaseUnavailable), postgres.transaction(wait=0.05) as connection:
            connection.exec_driver_sql("LOCK TABLE audit_head")


def test_what_is_away_for_longer_than_the_patience_is_given_up(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/disp.sqlite", patience=0.3, lock_wait=0.01)
    database.create_tables()
    with locked(tmp_path / "disp.sqlite"), pytest.raises(DatabaseUnavailable):
        AuditLog(database).append(*ROW)
    hasty = database.with_patience(0.0)
    tries: list[None] = []

    def work() -> None:
        tries.append(None)
        raise DatabaseUnavailable

    with pytest.raises(DatabaseUnavailable):
        patiently(work, hasty.patience)
    assert len(tries) == 1
    database.close()


def test_other_errors_are_not_tried_again(database: Database) -> None:
    Deployments(database).beat("server-1", "tiny", "tiny")
    again = servers.insert().values(id="server-1", deployment="a", checkpoint="b", seen_at=1.0)
    tries: list[None] = []

    def work() -> None:
        tries.append(None)
        with database.transaction() as connection:
            connection.execute(again)

    with pytest.raises(IntegrityError):
        patiently(work, 600.0)
    assert len(tries) == 1


def test_looking_for_work_takes_no_lock(tmp_path: Path) -> None:
    """What workers and servers do every second while there is nothing to do."""
    database = Database(f"sqlite:///{tmp_path}/disp.sqlite", lock_wait=0.01)
    database.create_tables()
    workers = WorkerTable(database)
    executor = workers.register("G1", "cpu")
    with locked(tmp_path / "disp.sqlite"):
        assert workers.claim_dead(executor) == []
        assert Deployments(database).claim("tiny", "server-1") is None
        assert [worker.name for worker in workers.list()] == ["G1"]
    database.close()


def test_one_reading_sees_one_moment(database: Database) -> None:
    log = AuditLog(database)
    with database.reading() as connection:
        before = connection.exec_driver_sql("SELECT count(*) FROM audit").scalar()
        log.append(*ROW)
        assert connection.exec_driver_sql("SELECT count(*) FROM audit").scalar() == before
    assert len(log.list()) == 1


def test_a_database_that_is_away_at_the_start_is_said_so(postgres_url: str) -> None:
    nobody = postgres_url.rpartition(":")[0]
    with pytest.raises(DatabaseError, match="OperationalError"):
        open_database(f"{nobody}:1/none")


def test_every_failed_try_to_open_a_database_closes_its_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Database] = []
    closed: list[Database] = []
    close, create_tables = Database.close, Database.create_tables

    def fails_twice(database: Database) -> None:
        tries.append(database)
        if len(tries) < 3:
            raise DatabaseUnavailable
        create_tables(database)

    def recorded(database: Database) -> None:
        closed.append(database)
        close(database)

    monkeypatch.setattr(Database, "create_tables", fails_twice)
    monkeypatch.setattr(Database, "close", recorded)
    database = open_database(f"sqlite:///{tmp_path / 'disp.sqlite'}", patience=30.0)
    assert closed == tries[:2]
    close(database)
