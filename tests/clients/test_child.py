"""A server as a child process, really started and really stopped."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from clients import Client
from clients._commands._child import ServerFailed, running_server
from tests.support.service import ROOT

SECRET = "sk-" + "0123456789abcdef" * 2


def serve(*arguments: str | Path) -> list[str]:
    """The command that serves, started from anywhere."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from server.__main__ import main; "
    words = ["--port", "0", "--device", "cpu", *map(str, arguments)]
    return [sys.executable, "-c", f"{code}sys.exit(main({words!r}))"]


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def test_it_is_ready_inside_and_gone_after(tiny_checkpoint: Path, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(SECRET)
    command = serve("--model", tiny_checkpoint, "--key-file", key_file)
    with running_server(command, patience=120.0, api_key=SECRET) as running:
        with Client(running.base_url, running.api_key) as client:
            assert client.ready()
            assert client.answer(None, "Hello?", gen_length=2).response.usage.steps == 2
        assert not gone(running.process.pid)
    assert gone(running.process.pid)
    assert running.process.returncode == 0


def test_it_is_stopped_when_the_caller_fails(tiny_checkpoint: Path, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(SECRET)
    command = serve("--model", tiny_checkpoint, "--key-file", key_file)
    with (
        pytest.raises(KeyboardInterrupt),
        running_server(command, patience=120.0, api_key=SECRET) as running,
    ):
        raise KeyboardInterrupt
    assert gone(running.process.pid)


def test_a_server_that_ends_shows_its_last_lines(tmp_path: Path) -> None:
    command = serve("--model", tmp_path / "absent", "--insecure-no-auth")
    with pytest.raises(ServerFailed) as caught, running_server(command, patience=120.0):
        pass
    assert "absent" in caught.value.message or "model" in caught.value.message


def test_one_that_never_announces_itself_is_given_up_and_stopped(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        f"import os, threading; open({str(pid_file)!r}, 'w').write(str(os.getpid())); "
        "print('hello', flush=True); threading.Event().wait()"
    )
    with (
        pytest.raises(ServerFailed, match="hello"),
        running_server([sys.executable, "-c", code], patience=5.0),
    ):
        pass
    assert gone(int(pid_file.read_text()))


def test_one_that_ends_after_its_announcement_is_not_ready() -> None:
    lines = f"key: {SECRET}\\nlistening on http://127.0.0.1:9"
    command = [sys.executable, "-c", f"print('{lines}', flush=True)"]
    with (
        pytest.raises(ServerFailed, match="listening on"),
        running_server(command, patience=60.0),
    ):
        pass
