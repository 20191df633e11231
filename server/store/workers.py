"""Workers that live: who they are, when they were last heard of, who takes over from the dead.

A worker has a name of its own (`G1`) and, for every life of its process, an executor id. Its
row is renewed by its heartbeat. A row whose heartbeat is old, or whose process is known to be
gone, belongs to a dead worker; exactly one other worker takes over what it had in hand.
"""

from __future__ import annotations

import builtins
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Integer,
    Select,
    String,
    Table,
    select,
    update,
)

from server.store.database import Database, clock, metadata
from server.store.outages import all_retried

WorkerState = Literal["alive", "left", "reaping", "reaped"]

workers = Table(
    "workers",
    metadata,
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


class NameTaken(Exception):
    """Another worker of this name is alive; the message says where."""


@dataclass(frozen=True)
class Worker:
    """One life of one worker.

    Attributes:
        executor: Unique id of this life.
        name: The worker's name.
        machine: Where it runs: host, boot and process namespace.
        pid: Its process.
        device: What it computes on.
        started_at: Unix seconds.
        beat_at: When it was last heard of, Unix seconds.
        state: `alive`; `left` after it stopped in good order; `reaping` and `reaped` once
            another worker has taken over.
    """

    executor: str
    name: str
    machine: str
    pid: int
    device: str
    started_at: float
    beat_at: float
    state: WorkerState


@all_retried
class WorkerTable:
    """The table of workers.

    Args:
        database: The service's database.
        patience: Seconds without a heartbeat after which a worker is dead.
    """

    def __init__(self, database: Database, *, patience: float = 60.0) -> None:
        self._database = database
        self._patience = patience

    def register(self, name: str, device: str) -> str:
        """Enters this process under a name; returns its executor id.

        Raises:
            NameTaken: If a worker of this name is alive.
        """
        executor = f"{name}.{secrets.token_hex(4)}"
        with self._database.transaction() as connection:
            now = clock(connection)
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("LOCK TABLE workers IN SHARE ROW EXCLUSIVE MODE")
            query = select(workers).where(workers.c.name == name, workers.c.state == "alive")
            for row in connection.execute(query).all():
                if not self._is_dead(row, now):
                    host = row.machine.split(" ")[0]
                    raise NameTaken(
                        f"A worker named {name} is alive on {host} (process {row.pid}, heard of "
                        f"{now - row.beat_at:.0f} s ago): stop it, or give this one another --name."
                    )
            connection.execute(
                workers.insert().values(
                    executor=executor,
                    name=name,
                    machine=this_machine(),
                    pid=os.getpid(),
                    born=_birth(os.getpid()) or "",
                    device=device,
                    started_at=now,
                    beat_at=now,
                    state="alive",
                )
            )
        return executor

    def beat(self, executor: str) -> bool:
        """Renews a worker's row; False if it was declared dead, and must stop."""
        with self._database.transaction() as connection:
            changed = connection.execute(
                update(workers)
                .where(workers.c.executor == executor, workers.c.state == "alive")
                .values(beat_at=clock(connection))
            )
            return changed.rowcount == 1

    def leave(self, executor: str) -> None:
        """Says that a worker stops in good order."""
        self._set(executor, "alive", "left")

    def give_in(self, executor: str) -> None:
        """Says that a worker that was taken for dead ends now.

        What it took from the queues before it knew is put back by whoever sees this.
        """
        with self._database.transaction() as connection:
            connection.execute(
                update(workers).where(workers.c.executor == executor).values(state="left")
            )

    def claim_dead(self, reaper: str) -> list[str]:
        """Executor ids of dead workers from whom `reaper` alone takes over from now on."""
        query = select(workers).where(workers.c.state != "reaped")
        with self._database.reading() as connection:
            if not self._claimable(connection, query, reaper):
                return []
        with self._database.transaction() as connection:
            claimed = self._claimable(connection, query.with_for_update(), reaper)
            for executor in claimed:
                connection.execute(
                    update(workers)
                    .where(workers.c.executor == executor)
                    .values(state="reaping", reaper=reaper)
                )
        return claimed

    def reaped(self, executor: str) -> None:
        """Notes that everything a dead worker had in hand is in the queues again."""
        self._set(executor, "reaping", "reaped")

    def list(self) -> Sequence[Worker]:
        """Workers that are alive or were heard of lately, by name."""
        with self._database.reading() as connection:
            query = select(workers).where(workers.c.state == "alive").order_by(workers.c.name)
            return [_worker(row) for row in connection.execute(query)]

    def _claimable(
        self, connection: Connection, query: Select[Any], reaper: str
    ) -> builtins.list[str]:
        now = clock(connection)
        rows = {row.executor: row for row in connection.execute(query).all()}
        others = [row for row in rows.values() if row.executor != reaper]
        return [row.executor for row in others if self._may_claim(row, rows, now)]

    def _may_claim(self, row: Any, rows: dict[str, Any], now: float) -> bool:
        if row.state == "reaping":
            reaper = rows.get(row.reaper)
            return reaper is None or reaper.state != "alive" or self._is_dead(reaper, now)
        return row.state == "left" or self._is_dead(row, now)

    def _is_dead(self, row: Any, now: float) -> bool:
        if now - row.beat_at > self._patience:
            return True
        return bool(row.machine == this_machine() and _birth(row.pid) != row.born)

    def _set(self, executor: str, expected: WorkerState, state: WorkerState) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                update(workers)
                .where(workers.c.executor == executor, workers.c.state == expected)
                .values(state=state)
            )


def this_machine() -> str:
    """Names the set of processes that this one can see, to tell whether one of them is gone.

    Host name, boot and process namespace: two containers of one host name never share it.
    """
    boot = namespace = "?"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        # Without them no process is ever taken for gone; its heartbeat decides.
        namespace = secrets.token_hex(8)
    return f"{socket.gethostname()[:128]} {boot} {namespace}"


def _birth(pid: int) -> str | None:
    """When a process began, in the kernel's own count; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def _worker(row: Any) -> Worker:
    return Worker(
        executor=row.executor,
        name=row.name,
        machine=row.machine,
        pid=row.pid,
        device=row.device,
        started_at=row.started_at,
        beat_at=row.beat_at,
        state=row.state,
    )
