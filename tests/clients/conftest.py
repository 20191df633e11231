from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clients import Client
from server.security.keys import SCOPES, create_key
from server.store.attempts import Attempts
from server.store.database import Database
from tests.support.job_server import JobServer, data_archive, job_server
from tests.support.service import Service, start_server, stop_server
from tests.support.wire import Caller, picture, talk

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def png() -> bytes:
    return picture()


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Caller:
    return Caller(request.param)


@pytest.fixture(scope="session")
def live(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A real server with a key that may do all and one that may not answer undefended."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    keys = {
        "all": create_key(file, "all", SCOPES)[0],
        "infer": create_key(file, "infer", ["infer"])[0],
    }
    process, url = start_server(
        ["--model", str(tiny_checkpoint), "--keys-file", str(file)], jobs=True
    )
    yield Service(url, keys, process)
    stop_server(process)


@pytest.fixture(scope="session")
def board(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobServer]:
    """The real service with its stores, but without a model or a worker: jobs stay queued."""
    with job_server(tmp_path_factory.mktemp("board"), tiny_checkpoint) as running:
        yield running


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, board: JobServer) -> Callable[..., Any]:
    """Calls a method of a client of either kind on the board."""

    def run(method: str, *args: Any, key: str = "alice", **kwargs: Any) -> Any:
        url, options = kwargs.pop("url", board.url), kwargs.pop("options", {})
        return talk(request.param, url, board.keys[key], options, method, *args, **kwargs)

    return run


@pytest.fixture
def data_id(board: JobServer) -> str:
    """An upload of alice's."""
    with Client(board.url, board.keys["alice"]) as client:
        return client.files.upload(data_archive(), filename="data.zip").id


@pytest.fixture
def job_id(board: JobServer, data_id: str) -> str:
    with Client(board.url, board.keys["alice"]) as client:
        return client.jobs.create(data_id).id


@pytest.fixture
def attempts(board: JobServer) -> Iterator[Attempts]:
    """What a worker would write."""
    database = Database(f"sqlite:///{board.home / 'disp.sqlite'}")
    yield Attempts(database)
    database.close()


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """An image file that the server accepts."""
    path = tmp_path / "scene.png"
    path.write_bytes(picture(size=(96, 64)))
    return path


@pytest.fixture
def disp(tmp_path: Path) -> Run:
    """Runs `disp` as a process of its own; keywords become its environment."""

    def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: text for name, text in os.environ.items() if "DISP_" not in name}
        return subprocess.run(
            [sys.executable, "-m", "clients.cli", *map(str, arguments)],
            cwd=tmp_path,
            env={**inherited, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return run
