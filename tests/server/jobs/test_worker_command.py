"""The command of a worker says in one line why it cannot begin."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from server.errors import DatabaseUnavailable
from server.jobs.__main__ import AWAY, main
from server.jobs.worker import JobWorker
from server.store.jobs import JobStore
from server.store.workers import WorkerTable


def locked() -> OperationalError:
    cause = sqlite3.OperationalError("database is locked")
    cause.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return OperationalError("a statement", {}, cause)


PLACES: dict[str, tuple[Any, str, Exception]] = {
    "looks for work": (JobStore, "list", DatabaseUnavailable(retry_after=5)),
    "enters itself": (WorkerTable, "register", DatabaseUnavailable(retry_after=5)),
    "starts the job engine": (JobWorker, "run", locked()),
}


@pytest.fixture
def handlers() -> Iterator[None]:
    """The handlers of signals are those of the tests again."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("place", PLACES)
def test_a_database_that_goes_away_at_the_start_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], place: str
) -> None:
    kind, name, error = PLACES[place]

    def away(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(kind, name, away)
    if place == "starts the job engine":
        monkeypatch.setattr(JobWorker, "__init__", lambda *_: None)
    words = ["--data-dir", str(tmp_path), "--device", "cpu", "--dtype", "float32"]
    assert main(words) == AWAY
    said = capfd.readouterr().err
    assert "error: The database does not answer" in said
    assert "Traceback" not in said
