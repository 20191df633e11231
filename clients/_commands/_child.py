"""A server as a child process: started, announced, ready, stopped."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from clients._client import Client
from clients._exceptions import ConnectionFailed, DispError

URL = re.compile(r"^listening on (http://\S+)$")
KEY = re.compile(r"^key: (sk-\S+)$")
STOP_GRACE = 60.0
LINES_KEPT = 30


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        base_url: Where.
        api_key: The key to ask it with.
        process: The process.
    """

    base_url: str
    api_key: str
    process: subprocess.Popen[str]


class ServerFailed(DispError):
    """The server did not start."""


@contextmanager
def running_server(
    command: Sequence[str], *, patience: float, api_key: str | None = None
) -> Iterator[Running]:
    """Starts a server, waits until it is ready, and stops it at the end.

    It runs in a session of its own, so that Ctrl-C reaches us alone and we stop it in order.

    Args:
        command: The process; it prints its URL and, if it made one, its key.
        patience: Seconds until it must be ready.
        api_key: The key, where the process was given one.

    Raises:
        ServerFailed: If it ends or is not ready in time; the message ends with its last lines.
    """
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    output = _Output(process, api_key)
    try:
        yield _when_ready(process, output, time.monotonic() + patience)
    finally:
        _stop(process)
        output.close()


class _Output:
    """Reads what a process prints, so that it never blocks, and finds URL and key in it."""

    def __init__(self, process: subprocess.Popen[str], key: str | None) -> None:
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)
        self.url: str | None = None
        self.key = key
        self.announced = threading.Event()
        assert process.stdout is not None
        self._pipe = process.stdout
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> str:
        """Reads the rest of a process that has ended; returns the last lines."""
        self._thread.join()
        self._pipe.close()
        return "\n".join(self.lines)

    def _read(self) -> None:
        for line in self._pipe:
            self.lines.append(line.rstrip())
            if self.url is None and (found := URL.match(self.lines[-1])):
                self.url = found.group(1)
            if self.key is None and (found := KEY.match(self.lines[-1])):
                self.key = found.group(1)
            if self.url and self.key:
                self.announced.set()
        self.announced.set()


def _when_ready(process: subprocess.Popen[str], output: _Output, deadline: float) -> Running:
    output.announced.wait(deadline - time.monotonic())
    if output.url is None or output.key is None:
        raise _failed(process, output)
    with Client(output.url, output.key, timeout=10.0) as client:
        while time.monotonic() < deadline and process.poll() is None:
            if _answers(client):
                return Running(output.url, output.key, process)
            time.sleep(0.1)
    raise _failed(process, output)


def _answers(client: Client) -> bool:
    try:
        return client.ready()
    except ConnectionFailed:
        return False


def _failed(process: subprocess.Popen[str], output: _Output) -> ServerFailed:
    _stop(process)
    return ServerFailed(f"The server did not become ready. Its last lines:\n{output.close()}")


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
