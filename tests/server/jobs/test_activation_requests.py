"""The last stage of a job asks the servers; what becomes of its request when one of them ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from server.jobs import activation as activation_module
from server.jobs.activation import Activation, ActivationFailed
from server.jobs.interrupt import JobStopped, WorkerStopping
from server.store.attempts import Attempt, AttemptOver, Attempts
from server.store.checkpoint_tables import checkpoints
from server.store.checkpoints import CheckpointStore
from server.store.database import Database
from server.store.deployments import DeploymentRequest, Deployments, requests, servers
from server.store.events import EventLog
from server.store.jobs import JobStore


class Place:
    """A deployment that serves `origin`, and a job that has staged `child`."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(f"sqlite:///{folder / 'disp.sqlite'}")
        self.database.create_tables()
        self.store = CheckpointStore(self.database, folder)
        with self.database.transaction() as connection:
            for name, parent in (("origin", None), ("child", "origin")):
                values = {"id": name, "sha256": "", "path": "", "files": "{}", "parent": parent}
                rest = {"state": "verified", "metrics": "{}", "gate_reasons": "[]", "created_at": 0}
                connection.execute(checkpoints.insert().values({**values, **rest}))
        self.store.open_deployment("origin")
        self.jobs = JobStore(self.database)
        self.job = self.jobs.create({}, {}, key_id=None).id
        self.deployments = Deployments(self.database)
        self.activation = Activation(self.database, folder, Attempts(self.database))

    def activate(self, *steps: Callable[[], None]) -> str:
        """Activates `child` for the job; between two looks at the request the steps are taken."""
        left = list(steps)

        def check() -> None:
            if left:
                left.pop(0)()

        return self.activation(Attempt(self.job, 1), "child", check)

    def appear(self, server: str = "server-1") -> None:
        self.deployments.beat(server, "origin", "origin")

    def claim(self, server: str = "server-1") -> DeploymentRequest | None:
        return self.deployments.claim("origin", server)

    def vanish(self, server: str = "server-1") -> None:
        """The server is not heard of for a long time."""
        with self.database.transaction() as connection:
            connection.execute(update(servers).where(servers.c.id == server).values(seen_at=0.0))

    def states(self) -> list[str]:
        with self.database.reading() as connection:
            return list(connection.execute(select(requests.c.state)).scalars())

    def active(self) -> str:
        record = self.store.active()
        assert record is not None
        return record.id

    def messages(self) -> list[str]:
        return [event.message for event in EventLog(self.database).read(self.job)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(activation_module, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(activation_module, "_STRANDED_SECONDS", 0.0)
    place = Place(tmp_path)
    place.appear()
    yield place
    place.database.close()


def test_what_a_server_was_trying_when_it_went_is_not_activated(place: Place) -> None:
    def take_and_vanish() -> None:
        assert place.claim() is not None
        place.vanish()

    with pytest.raises(ActivationFailed, match="is gone"):
        place.activate(take_and_vanish)
    assert place.active() == "origin"
    # Nor does the next server try it, for a job that has failed.
    place.appear("server-2")
    assert place.claim("server-2") is None
    assert place.states() == ["failed"]


def test_a_request_that_nobody_took_is_noted_for_the_next_server(place: Place) -> None:
    assert "No server runs" in place.activate(place.vanish)
    assert place.active() == "child"
    assert place.states() == ["withdrawn"]


def test_another_server_takes_up_what_one_has_left(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation_module, "_STRANDED_SECONDS", 600.0)

    def take_and_vanish() -> None:
        assert place.claim() is not None
        place.vanish()

    def return_and_serve() -> None:
        place.appear("server-2")
        request = place.claim("server-2")
        assert request is not None
        assert place.deployments.finish(request.id, "server-2")

    assert place.activate(take_and_vanish, return_and_serve) == "child is active."


def test_a_request_that_failed_says_why(place: Place) -> None:
    def fail() -> None:
        request = place.claim()
        assert request is not None
        assert place.deployments.finish(request.id, "server-1", "It cannot be loaded.")
        place.vanish()

    with pytest.raises(ActivationFailed, match="It cannot be loaded"):
        place.activate(fail)
    assert place.active() == "origin"


@pytest.mark.parametrize("stop", [JobStopped, WorkerStopping])
def test_a_job_that_is_stopped_asks_no_longer(place: Place, stop: Any) -> None:
    def cancel() -> None:
        place.jobs.cancel(place.job)
        raise stop

    with pytest.raises(stop):
        place.activate(cancel)
    assert place.states() == ["withdrawn"]
    assert place.claim() is None
    assert place.messages()[-1] == "The job was cancelled."


def test_a_job_that_is_stopped_before_it_says_that_it_asks_does_not_ask(place: Place) -> None:
    place.jobs.pause(place.job)
    with pytest.raises(AttemptOver):
        place.activate()
    assert place.claim() is None


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("stop", [JobStopped, WorkerStopping])
def test_a_job_that_is_stopped_too_late_says_so(place: Place, stop: Any, ended: bool) -> None:
    def take_and_stop() -> None:
        request = place.claim()
        assert request is not None
        if ended:
            place.deployments.finish(request.id, "server-1")
        place.jobs.cancel(place.job)
        raise stop

    with pytest.raises(stop):
        place.activate(take_and_stop)
    assert place.states() == ["done" if ended else "running"]
    assert place.messages()[-1].startswith("The job was stopped too late")
