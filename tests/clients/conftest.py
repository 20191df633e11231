from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.security.keys import SCOPES, create_key
from tests.support.service import Service, start_server, stop_server
from tests.support.wire import Caller, picture

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
    process, url = start_server(["--model", str(tiny_checkpoint), "--keys-file", str(file)])
    yield Service(url, keys, process)
    stop_server(process)


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
