"""The audit log: who changed what, append-only, every row bound to the one before it.

A row's hash is the SHA-256 of the previous row's hash and of its own content in canonical
JSON. The number and the hash of the last row are kept apart, so a missing tail shows as well.
Whoever can write the whole database can forge all of it; keep the head that `verify` prints
somewhere else to notice that, too.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Float, Integer, String, Table, select, update
from sqlalchemy.dialects import postgresql, sqlite

from server.store.database import Database, metadata
from server.store.outages import all_retried

GENESIS = "0" * 64
"""What stands before the first row."""

_HEAD = 1

audit_rows = Table(
    "audit",
    metadata,
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

audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
)


@dataclass(frozen=True)
class Actor:
    """Who does something.

    Attributes:
        name: For people: a key's name, `job <id>`, `command line`.
        key_id: The key, if it came with one.
        request_id: The request, if it was one.
    """

    name: str
    key_id: str | None = None
    request_id: str | None = None


def as_actor(actor: Actor | str) -> Actor:
    """Somebody of whom perhaps only the name is given."""
    return actor if isinstance(actor, Actor) else Actor(actor)


@dataclass(frozen=True)
class AuditRow:
    """One thing that somebody did.

    Attributes:
        number: 1, 2, 3 ... without gaps.
        at: Unix seconds.
        actor: Who, for people.
        key_id: With which key.
        action: `activate`, `force`, `rollback`, `create_key`, ...
        object: To what.
        before: What was in its place before, such as the checkpoint that served.
        after: What is in its place now.
        request_id: The request that asked for it.
        previous_hash: `hash` of the row before; `GENESIS` for the first.
        hash: SHA-256 over `previous_hash` and everything above.
    """

    number: int
    at: float
    actor: str
    key_id: str | None
    action: str
    object: str
    before: str | None
    after: str | None
    request_id: str | None
    previous_hash: str
    hash: str = ""

    def digest(self) -> str:
        """The hash that this row must have."""
        content = asdict(self)
        del content["hash"], content["previous_hash"]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(f"{self.previous_hash}\n{text}".encode()).hexdigest()


@dataclass(frozen=True)
class Verdict:
    """What `verify` found.

    Attributes:
        rows: Rows that were read.
        head: Hash of the last row; `GENESIS` if there is none.
        problem: What is wrong, at its first place; None if the chain is whole.
    """

    rows: int
    head: str
    problem: str | None = None


@all_retried
class AuditLog:
    """Appends, lists and verifies rows; there is no way to change or remove one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(
        self,
        actor: str,
        key_id: str | None,
        action: str,
        object: str,
        before: str | None = None,
        after: str | None = None,
        request_id: str | None = None,
    ) -> AuditRow:
        """Adds a row."""
        with self._database.transaction() as connection:
            who = Actor(actor, key_id, request_id)
            return append_row(connection, who, action, object, before=before, after=after)

    def list(self, *, after: int = 0, limit: int = 100) -> list[AuditRow]:
        """The rows numbered above `after`, in order, at most `limit`."""
        query = select(audit_rows).where(audit_rows.c.number > after)
        query = query.order_by(audit_rows.c.number).limit(limit)
        with self._database.reading() as connection:
            return [AuditRow(**row._mapping) for row in connection.execute(query)]

    def verify(self, known: str | None = None) -> Verdict:
        """Reads every row and says whether one was edited, removed, added or moved.

        Args:
            known: The head of an earlier verification, which must still be in the chain.
        """
        previous, count = GENESIS, 0
        seen = known in (None, GENESIS)
        with self._database.reading() as connection:
            head = connection.execute(select(audit_head)).first()
            query = select(audit_rows).order_by(audit_rows.c.number)
            for found in connection.execute(query):
                row = AuditRow(**found._mapping)
                if problem := _problem_of(row, count + 1, previous):
                    return Verdict(count, previous, problem)
                previous, count = row.hash, row.number
                seen = seen or row.hash == known
        expected = (0, GENESIS) if head is None else (head.number, head.hash)
        if (count, previous) != expected:
            problem = f"The log ends with row {count}; its head says row {expected[0]}."
            return Verdict(count, previous, problem)
        if not seen:
            return Verdict(count, previous, "The head that was known is not in the log any more.")
        return Verdict(count, previous)


def append_row(
    connection: Connection,
    actor: Actor,
    action: str,
    object: str,
    *,
    before: str | None = None,
    after: str | None = None,
) -> AuditRow:
    """Adds a row inside a transaction, so that an act and its record are one.

    The head is locked until the transaction ends: rows are chained one after another.
    """
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    first = insert(audit_head).values(id=_HEAD, number=0, hash=GENESIS)
    connection.execute(first.on_conflict_do_nothing())
    head = connection.execute(select(audit_head).with_for_update()).one()
    row = AuditRow(
        number=head.number + 1,
        at=time.time(),
        actor=actor.name,
        key_id=actor.key_id,
        action=action,
        object=object,
        before=before,
        after=after,
        request_id=actor.request_id,
        previous_hash=head.hash,
    )
    row = replace(row, hash=row.digest())
    values: dict[str, Any] = asdict(row)
    connection.execute(audit_rows.insert().values(values))
    connection.execute(update(audit_head).values(number=row.number, hash=row.hash))
    return row


def _problem_of(row: AuditRow, number: int, previous: str) -> str | None:
    if row.number != number:
        return f"Row {number} is missing: row {row.number} stands in its place."
    if row.previous_hash != previous:
        return f"Row {number} does not follow the row before it: one was edited or moved."
    if row.hash != row.digest():
        return f"Row {number} was edited."
    return None
