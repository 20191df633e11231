"""Servers that start without the seconds that their imports take.

One process has imported what `python -m server` needs and forks for every server that is asked
for. The server is a process of its own, with arguments, environment, working directory and output
as `subprocess` would have given it; only the imports are there already.

`python -m tests.support.warm_server PATH` is that process. It takes orders on the socket PATH until
its standard input ends.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
START_SECONDS = 120
_IMPORTED = (
    "server.__main__",
    "server.serve",
    "purifier.mdlm.llada_v",
    "sqlalchemy.dialects.sqlite",
)


class WarmServer:
    """A server that was forked; what is used of a `Popen`.

    Args:
        arguments: Of `python -m server`.
        env: Its whole environment.
    """

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        read, write = os.pipe()
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(_forking_process())
        order = {"arguments": list(arguments), "env": dict(env), "cwd": str(ROOT)}
        try:
            socket.send_fds(self._line, [b"."], [write, 2])
            self._line.sendall(json.dumps(order).encode() + b"\n")
        finally:
            os.close(write)
        self._answers = self._line.makefile()
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None
        self.stdout: IO[str] = open(read, encoding="utf-8")  # noqa: SIM115
        self._lock = threading.Lock()

    def __del__(self) -> None:
        # Of a server that was killed and not waited for.
        self._answers.close()
        self._line.close()

    def poll(self) -> int | None:
        """Its exit status once it has ended."""
        return self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its exit status.

        Raises:
            subprocess.TimeoutExpired: If it does not end in time.
        """
        status = self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("server", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _status(self, timeout: float | None) -> int | None:
        with self._lock:
            if self.returncode is None and select.select([self._line], [], [], timeout)[0]:
                self.returncode = int(self._answers.readline())
                self._answers.close()
                self._line.close()
            return self.returncode


@cache
def _forking_process() -> str:
    """Starts the process that forks; returns the path of its socket."""
    folder = tempfile.mkdtemp(prefix="disp-warm-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = f"{folder}/socket"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.warm_server", path],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(_end, process)
    assert process.stdout is not None
    ready = select.select([process.stdout], [], [], START_SECONDS)[0]
    if not ready or process.stdout.readline() != b"ready\n":
        process.kill()
        raise AssertionError("the process that forks servers did not start")
    return path


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait(START_SECONDS)


def main() -> int:
    """Forks a server for every order; in a forked server, runs it."""
    for name in _IMPORTED:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([sys.stdin, listener], [], [])
        if sys.stdin in ready:
            return 0
        line, _ = listener.accept()
        with line:
            _, fds, _, _ = socket.recv_fds(line, 1, 2)
            order = json.loads(line.makefile().readline())
            if os.fork() == 0:
                listener.close()
                return _keep(order, fds, line)
            for fd in fds:
                os.close(fd)


def _keep(order: dict[str, Any], fds: list[int], line: socket.socket) -> int:
    """Forks the server, waits for its end and says its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    server = os.fork()
    if server == 0:
        line.close()
        return _serve(order, fds)
    for fd in (*fds, 1):
        os.close(fd)
    line.sendall(f"{server}\n".encode())
    _, status = os.waitpid(server, 0)
    with contextlib.suppress(BrokenPipeError):
        line.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _serve(order: dict[str, Any], fds: list[int]) -> int:
    os.dup2(fds[0], 1)
    os.dup2(fds[1], 2)
    for fd in fds:
        os.close(fd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    sys.argv = ["server", *order["arguments"]]
    status: int = importlib.import_module("server.__main__").main()
    return status


if __name__ == "__main__":
    sys.exit(main())
