"""Requests to activate a checkpoint end, whatever the database does meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy.exc import OperationalError

from server import watcher as watcher_module
from server.deployer import Deployer
from server.engine import Serving
from server.errors import CheckpointConflict, NotReady
from server.store.database import Database
from server.store.deployments import DeploymentRequest, Deployments
from server.watcher import Watcher
from tests.support.job_worker import wait_for

GONE = OperationalError("a statement", {}, Exception("the database went away"))


class Recorder:
    """What a watcher needs of a deployer; notes what it is asked to activate."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refuses = False
        self.store = SimpleNamespace(deployment="origin")
        serving = Serving(cast("Any", None), "origin", 0)
        self.engine = SimpleNamespace(serving=lambda: serving)

    def activate(self, checkpoint: str, *, actor: Any) -> None:
        self.asked.append(checkpoint)
        if self.refuses:
            raise CheckpointConflict("It cannot be loaded.")

    def is_behind(self) -> bool:
        return False


@pytest.fixture
def deployments(tmp_path: Path) -> Iterator[Deployments]:
    database = Database(f"sqlite:///{tmp_path / 'disp.sqlite'}")
    database.create_tables()
    yield Deployments(database)
    database.close()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def watcher(
    deployments: Deployments, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Watcher]:
    monkeypatch.setattr(watcher_module, "POLL_SECONDS", 0.01)
    watcher = Watcher(cast("Deployer", recorder), deployments)
    yield watcher
    watcher.stop(60)


def asked(deployments: Deployments) -> DeploymentRequest:
    """A request to activate `new`, which the watcher finds when it starts."""
    deployments.beat("another server", "origin", "origin")
    request = deployments.request("new", requested_by="job 1", deployment="origin")
    assert request is not None
    return request


def ended(deployments: Deployments, request: DeploymentRequest) -> DeploymentRequest:
    def found() -> DeploymentRequest | None:
        now = deployments.get(request.id)
        return now if now is not None and now.state in ("done", "failed") else None

    return cast("DeploymentRequest", wait_for(found, "the end of the request", 60))


@pytest.mark.parametrize("refuses", [False, True])
def test_an_activation_whose_end_could_not_be_noted_is_noted_later(
    watcher: Watcher,
    deployments: Deployments,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refuses: bool,
) -> None:
    recorder.refuses = refuses
    finish, failures = deployments.finish, [GONE, GONE]

    def failing(*words: Any) -> bool:
        if failures:
            raise failures.pop()
        return finish(*words)

    monkeypatch.setattr(deployments, "finish", failing)
    request = asked(deployments)
    with caplog.at_level(logging.ERROR):
        watcher.start()
        now = ended(deployments, request)
    assert (now.state, now.reason) == (
        ("failed", "It cannot be loaded.") if refuses else ("done", None)
    )
    # The model was not loaded again for it, and the log says what happened, once.
    assert recorder.asked == ["new"]
    assert caplog.text.count("the database went away") == 1


def test_a_server_that_has_lost_its_model_says_how_the_activation_ended(
    watcher: Watcher, deployments: Deployments, recorder: Recorder
) -> None:
    def lost() -> Serving:
        raise NotReady(retry_after=5)

    def activate(checkpoint: str, *, actor: Any) -> None:
        recorder.engine.serving = lost
        raise CheckpointConflict("It cannot be loaded, nor can the old one.")

    recorder.activate = activate  # type: ignore[method-assign]
    request = asked(deployments)
    watcher.start()
    now = ended(deployments, request)
    assert (now.state, now.reason) == ("failed", "It cannot be loaded, nor can the old one.")


def test_a_request_whose_claim_was_not_heard_of_is_taken_again(
    watcher: Watcher,
    deployments: Deployments,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claim, failures = deployments.claim, [GONE]

    def failing(*words: Any) -> DeploymentRequest | None:
        found = claim(*words)
        if found is not None and failures:
            raise failures.pop()
        return found

    monkeypatch.setattr(deployments, "claim", failing)
    request = asked(deployments)
    watcher.start()
    assert ended(deployments, request).state == "done"
    assert recorder.asked == ["new"]


def test_a_later_request_waits_until_the_first_is_noted(
    watcher: Watcher,
    deployments: Deployments,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finish, order = deployments.finish, []
    failures = [GONE]

    def failing(request: str, *words: Any) -> bool:
        if failures:
            raise failures.pop()
        order.append(request)
        return finish(request, *words)

    monkeypatch.setattr(deployments, "finish", failing)
    first = asked(deployments)
    second = asked(deployments)
    watcher.start()
    assert ended(deployments, second).state == "done"
    assert order == [first.id, second.id]
    assert recorder.asked == ["new", "new"]
