"""The chain of the audit log: what was done to its rows shows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import Connection, delete, select, update

from server.store.audit import GENESIS, AuditLog, AuditRow, audit_head, audit_rows
from server.store.database import Database


@pytest.fixture
def log(database: Database) -> AuditLog:
    log = AuditLog(database)
    for number in range(5):
        log.append(f"user {number}", None, "activate", f"checkpoint {number}", before="ä")
    return log


def test_rows_come_back_in_order(log: AuditLog) -> None:
    rows = log.list(after=1, limit=2)
    assert [row.number for row in rows] == [2, 3]
    assert [row.actor for row in rows] == ["user 1", "user 2"]
    assert log.list()[0].previous_hash == GENESIS


def test_whole_chain_is_accepted(log: AuditLog) -> None:
    verdict = log.verify()
    assert (verdict.rows, verdict.problem) == (5, None)
    assert verdict.head == log.list()[-1].hash


def test_empty_log_is_whole(database: Database) -> None:
    verdict = AuditLog(database).verify()
    assert (verdict.rows, verdict.head, verdict.problem) == (0, GENESIS, None)


def edit(connection: Connection) -> None:
    connection.execute(update(audit_rows).where(audit_rows.c.number == 3).values(actor="nobody"))


def edit_and_hash_again(connection: Connection) -> None:
    third = select(audit_rows).where(audit_rows.c.number == 3)
    row = replace(AuditRow(**connection.execute(third).one()._mapping), actor="nobody")
    values = {"actor": row.actor, "hash": row.digest()}
    connection.execute(update(audit_rows).where(audit_rows.c.number == 3).values(values))


def remove(connection: Connection) -> None:
    connection.execute(delete(audit_rows).where(audit_rows.c.number == 3))


def remove_tail(connection: Connection) -> None:
    connection.execute(delete(audit_rows).where(audit_rows.c.number >= 4))


def remove_all(connection: Connection) -> None:
    connection.execute(delete(audit_rows))


def reorder(connection: Connection) -> None:
    for old, new in ((2, 100), (3, 2), (100, 3)):
        connection.execute(update(audit_rows).where(audit_rows.c.number == old).values(number=new))


def remove_head(connection: Connection) -> None:
    connection.execute(delete(audit_head))


@pytest.mark.parametrize(
    ("tamper", "complaint"),
    [
        (edit, "Row 3 was edited"),
        (edit_and_hash_again, "Row 4 does not follow"),
        (remove, "Row 3 is missing"),
        (remove_tail, "ends with row 3; its head says row 5"),
        (remove_all, "ends with row 0; its head says row 5"),
        (reorder, "Row 2 does not follow"),
        (remove_head, "ends with row 5; its head says row 0"),
    ],
)
def test_tampering_is_found(
    log: AuditLog, database: Database, tamper: Callable[[Connection], None], complaint: str
) -> None:
    with database.transaction() as connection:
        tamper(connection)
    assert complaint in (log.verify().problem or "")


def test_rows_of_several_writers_form_one_chain(database: Database) -> None:
    log = AuditLog(database)

    def write(name: str) -> None:
        for _ in range(10):
            log.append(name, None, "activate", "checkpoint")

    threads = [threading.Thread(target=write, args=(f"writer {n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    verdict = log.verify()
    assert (verdict.rows, verdict.problem) == (30, None)
