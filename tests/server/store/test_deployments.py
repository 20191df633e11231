"""Requests to serve a checkpoint, and who is there to answer them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from server.store.checkpoint_tables import checkpoints, slots
from server.store.database import Database
from server.store.deployments import ALIVE_SECONDS, Deployments, servers


@pytest.fixture
def deployments(database: Database) -> Deployments:
    """Two deployments, `a` and `b`; checkpoint `child` was made from `parent`, that from `a`."""
    with database.transaction() as connection:
        for name, parent in (("a", None), ("b", None), ("parent", "a"), ("child", "parent")):
            values: dict[str, Any] = {
                "id": name,
                "sha256": "",
                "path": "",
                "files": "{}",
                "parent": parent,
            }
            rest = {"state": "staged", "metrics": "{}", "gate_reasons": "[]", "created_at": 0}
            connection.execute(checkpoints.insert().values({**values, **rest}))
        for name in ("a", "b"):
            values = {"deployment": name, "active": name, "changed_at": 0.0}
            connection.execute(slots.insert().values(values))
    return Deployments(database)


def silence(database: Database, server: str) -> None:
    """Makes a server look as if it had said nothing for long."""
    then = time.time() - ALIVE_SECONDS - 1
    with database.transaction() as connection:
        connection.execute(update(servers).where(servers.c.id == server).values(seen_at=then))


def test_request_finds_the_deployment_of_the_nearest_ancestor(
    deployments: Deployments, database: Database
) -> None:
    deployments.beat("server-a", "a", "a")
    deployments.beat("server-b", "b", "b")
    request = deployments.request("child", requested_by="job 1")
    assert request is not None
    assert request.deployment == "a"
    with database.transaction() as connection:
        connection.execute(update(slots).where(slots.c.deployment == "b").values(active="parent"))
    request = deployments.request("child", requested_by="job 1")
    assert request is not None
    assert request.deployment == "b"


def test_nobody_is_asked_where_nobody_serves(deployments: Deployments, database: Database) -> None:
    assert deployments.request("child", requested_by="job 1") is None
    deployments.beat("server-a", "a", "a")
    silence(database, "server-a")
    assert deployments.request("child", requested_by="job 1") is None
    deployments.beat("server-a", "a", "a")
    deployments.leave("server-a")
    assert deployments.request("child", requested_by="job 1", deployment="a") is None
    assert deployments.alive() == []


def test_request_is_taken_once_and_answered(deployments: Deployments) -> None:
    for name in ("server-1", "server-2"):
        deployments.beat(name, "a", "a")
    request = deployments.request("child", requested_by="job 1")
    assert request is not None
    assert deployments.claim("b", "server-3") is None
    taken = deployments.claim("a", "server-1")
    assert taken is not None
    assert (taken.id, taken.state, taken.server) == (request.id, "running", "server-1")
    assert deployments.claim("a", "server-2") is None
    assert not deployments.withdraw(request.id)
    assert deployments.finish(request.id, "server-1", "It did not answer.")
    ended = deployments.get(request.id)
    assert ended is not None
    assert (ended.state, ended.reason) == ("failed", "It did not answer.")


def test_request_of_a_server_that_is_gone_is_taken_again(
    deployments: Deployments, database: Database
) -> None:
    for name in ("server-1", "server-2"):
        deployments.beat(name, "a", "a")
    request = deployments.request("child", requested_by="job 1")
    assert deployments.claim("a", "server-1") is not None
    silence(database, "server-1")
    taken = deployments.claim("a", "server-2")
    assert taken is not None
    assert request is not None
    assert (taken.id, taken.server) == (request.id, "server-2")


def test_a_server_that_lost_its_request_to_another_one_does_not_end_it(
    deployments: Deployments, database: Database
) -> None:
    for name in ("server-1", "server-2"):
        deployments.beat(name, "a", "a")
    request = deployments.request("child", requested_by="job 1")
    assert request is not None
    assert not deployments.finish(request.id, "server-1")
    assert deployments.claim("a", "server-1") is not None
    silence(database, "server-1")
    assert deployments.claim("a", "server-2") is not None
    assert not deployments.finish(request.id, "server-1", "It could not be loaded here.")
    assert deployments.get(request.id) == replace(request, state="running", server="server-2")
    assert deployments.finish(request.id, "server-2")
    assert not deployments.finish(request.id, "server-2", "It ended before.")
    ended = deployments.get(request.id)
    assert ended is not None
    assert (ended.state, ended.reason) == ("done", None)


@pytest.mark.parametrize("wrong", [-3600.0, 3600.0])
def test_who_lives_is_told_by_the_clock_of_the_database(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    """The clock of one machine is an hour off."""
    database = Database(postgres_url)
    database.create_tables()
    deployments = Deployments(database)
    now = time.time
    deployments.beat("server-1", "a", "a")
    first = deployments.request("child", requested_by="job 1", deployment="a")
    with monkeypatch.context() as there:
        there.setattr(time, "time", lambda: now() + wrong)
        assert [server.id for server in deployments.alive()] == ["server-1"]
        deployments.beat("server-2", "a", "a")
        second = deployments.request("child", requested_by="job 2", deployment="a")
    assert [server.id for server in deployments.alive()] == ["server-1", "server-2"]
    assert first is not None
    assert second is not None
    assert first.created_at < second.created_at < now() + 60
    database.close()


def test_withdrawn_request_is_not_taken(deployments: Deployments) -> None:
    deployments.beat("server-1", "a", "a")
    request = deployments.request("child", requested_by="job 1")
    assert request is not None
    assert deployments.withdraw(request.id)
    assert deployments.claim("a", "server-1") is None


def test_request_that_a_server_does_not_know_it_has_is_taken_again(
    deployments: Deployments,
) -> None:
    for name in ("server-1", "server-2"):
        deployments.beat(name, "a", "a")
    request = deployments.request("child", requested_by="job 1")
    assert request is not None
    assert deployments.claim("a", "server-1") is not None
    assert deployments.claim("a", "server-2") is None
    taken = deployments.claim("a", "server-1")
    assert taken is not None
    assert (taken.id, taken.state, taken.server) == (request.id, "running", "server-1")
    assert deployments.finish(request.id, "server-1")
    assert deployments.claim("a", "server-1") is None
