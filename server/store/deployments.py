"""Who serves, and the requests to serve something else that come from other processes.

A worker cannot swap a server's model: it leaves a row, which the servers of the deployment
watch. One of them takes it, swaps, and says how it ended; the others follow the active
checkpoint. Servers say every second that they live, so that nobody waits for one that is gone.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Select,
    String,
    Table,
    Text,
    delete,
    or_,
    select,
    update,
)

from server.store.checkpoint_tables import checkpoints, slots
from server.store.database import Database, clock, metadata
from server.store.outages import all_retried

RequestState = Literal["requested", "running", "done", "failed", "withdrawn"]

ALIVE_SECONDS = 10.0
"""A server that has said nothing for so long counts as gone."""

requests = Table(
    "deployments",
    metadata,
    Column("id", String, primary_key=True),
    Column("deployment", String, nullable=False),
    Column("checkpoint", String, nullable=False),
    Column("requested_by", String, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", Text),
    Column("server", String),
    Column("created_at", Float, nullable=False),
)

servers = Table(
    "servers",
    metadata,
    Column("id", String, primary_key=True),
    Column("deployment", String, nullable=False),
    Column("checkpoint", String, nullable=False),
    Column("seen_at", Float, nullable=False),
)


@dataclass(frozen=True)
class DeploymentRequest:
    """A request to serve a checkpoint.

    Attributes:
        id: Of the request.
        deployment: Whose active checkpoint is to change.
        checkpoint: What is to serve.
        requested_by: For people and the audit log, such as `job <id>`.
        state: `requested`, `running` at a server, then `done` or `failed`; or `withdrawn`.
        reason: Why it failed; safe to show.
        server: Who took it.
        created_at: Unix seconds.
    """

    id: str
    deployment: str
    checkpoint: str
    requested_by: str
    state: RequestState
    reason: str | None
    server: str | None
    created_at: float


@dataclass(frozen=True)
class LiveServer:
    """A server that was seen just now, and what it serves."""

    id: str
    deployment: str
    checkpoint: str


@all_retried
class Deployments:
    """The requests and the servers of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def request(
        self, checkpoint: str, *, requested_by: str, deployment: str | None = None
    ) -> DeploymentRequest | None:
        """Asks the servers of a deployment to serve a checkpoint.

        Args:
            checkpoint: A checkpoint of the store.
            requested_by: Who asks.
            deployment: Whose; by default the one that a live server has, which serves an
                ancestor of the checkpoint or was started with one.

        Returns:
            None if no live server belongs to it: then nobody is asked.
        """
        with self._database.transaction() as connection:
            alive = _alive(connection)
            if deployment is None:
                deployment = _find_deployment(connection, checkpoint, alive)
            if deployment not in {server.deployment for server in alive}:
                return None
            request = DeploymentRequest(
                id=f"dep-{uuid.uuid4().hex}",
                deployment=deployment,
                checkpoint=checkpoint,
                requested_by=requested_by,
                state="requested",
                reason=None,
                server=None,
                created_at=clock(connection),
            )
            connection.execute(requests.insert().values(vars(request)))
            return request

    def get(self, request: str) -> DeploymentRequest | None:
        """A request as it stands now."""
        with self._database.reading() as connection:
            row = connection.execute(select(requests).where(requests.c.id == request)).first()
            return None if row is None else DeploymentRequest(**row._mapping)

    def withdraw(self, request: str) -> bool:
        """Takes back a request that no server has taken; False if one has."""
        change = update(requests).where(requests.c.id == request, requests.c.state == "requested")
        with self._database.transaction() as connection:
            return bool(connection.execute(change.values(state="withdrawn")).rowcount)

    def claim(self, deployment: str, server: str) -> DeploymentRequest | None:
        """Takes the oldest open request of a deployment, also one whose server is gone.

        A server claims only while it works on no request. One that is `running` at itself was
        therefore claimed without its hearing of it, and is taken again.
        """
        with self._database.reading() as connection:
            if connection.execute(_open(connection, deployment, server)).first() is None:
                return None
        with self._database.transaction() as connection:
            query = _open(connection, deployment, server).with_for_update(skip_locked=True)
            row = connection.execute(query).first()
            if row is None:
                return None
            taken = {"state": "running", "server": server}
            connection.execute(update(requests).where(requests.c.id == row.id).values(taken))
            return DeploymentRequest(**{**row._mapping, **taken})

    def finish(self, request: str, server: str, reason: str | None = None) -> bool:
        """Says that a request is done, or with a reason that it failed.

        Args:
            request: Its id.
            server: Who says so.
            reason: Why it failed.

        Returns:
            False if the request is not this server's: another one has taken it over from a
            server that seemed gone, or it was given up. Then nothing has changed.
        """
        state: RequestState = "done" if reason is None else "failed"
        change = update(requests).where(
            requests.c.id == request, requests.c.server == server, requests.c.state == "running"
        )
        with self._database.transaction() as connection:
            return bool(connection.execute(change.values(state=state, reason=reason)).rowcount)

    def give_up(self, request: str, reason: str) -> None:
        """Fails a request whose server is gone, so that no later server takes it up.

        Nothing changes if it has ended, no server has taken it, or its server lives after all.

        Args:
            request: Its id.
            reason: Why it failed.
        """
        with self._database.transaction() as connection:
            alive = [item.id for item in _alive(connection)]
            connection.execute(
                update(requests)
                .where(
                    requests.c.id == request,
                    requests.c.state == "running",
                    requests.c.server.not_in(alive),
                )
                .values(state="failed", reason=reason)
            )

    def beat(self, server: str, deployment: str, checkpoint: str) -> None:
        """Says that a server lives, and what it serves."""
        with self._database.transaction() as connection:
            connection.execute(delete(servers).where(servers.c.id == server))
            values = {
                "id": server,
                "deployment": deployment,
                "checkpoint": checkpoint,
                "seen_at": clock(connection),
            }
            connection.execute(servers.insert().values(values))

    def leave(self, server: str) -> None:
        """Says that a server stops."""
        with self._database.transaction() as connection:
            connection.execute(delete(servers).where(servers.c.id == server))

    def alive(self, deployment: str | None = None) -> list[LiveServer]:
        """The servers that were seen just now; those of one deployment or all."""
        with self._database.reading() as connection:
            found = _alive(connection)
        return [item for item in found if deployment in (None, item.deployment)]


def _open(connection: Connection, deployment: str, server: str) -> Select[Any]:
    """The oldest request that no other living server works on."""
    others = [item.id for item in _alive(connection) if item.id != server]
    left = (requests.c.state == "running") & requests.c.server.not_in(others)
    return (
        select(requests)
        .where(requests.c.deployment == deployment, or_(requests.c.state == "requested", left))
        .order_by(requests.c.created_at)
        .limit(1)
    )


def _alive(connection: Connection) -> list[LiveServer]:
    query = select(servers).where(servers.c.seen_at > clock(connection) - ALIVE_SECONDS)
    rows = connection.execute(query.order_by(servers.c.id))
    return [LiveServer(row.id, row.deployment, row.checkpoint) for row in rows]


def _find_deployment(
    connection: Connection, checkpoint: str, alive: list[LiveServer]
) -> str | None:
    """The nearest ancestor decides: who serves it, then who was started with it."""
    pointers: Any = select(slots).where(slots.c.deployment.in_({item.deployment for item in alive}))
    rows = connection.execute(pointers.order_by(slots.c.changed_at.desc())).all()
    seen: set[str] = set()
    ancestor: str | None = checkpoint
    while ancestor is not None and ancestor not in seen:
        seen.add(ancestor)
        for column in ("active", "deployment"):
            for row in rows:
                if row._mapping[column] == ancestor:
                    return str(row.deployment)
        parent = select(checkpoints.c.parent).where(checkpoints.c.id == ancestor)
        ancestor = connection.execute(parent).scalar_one_or_none()
    return None
