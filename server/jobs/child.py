"""The worker that a server starts beside itself: only while there is work, again if it dies.

The child holds the read end of a pipe of which the server has the other one. However the server
ends, the pipe closes and the worker hands back what it has in hand and ends too.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Literal

from server.store.database import Database
from server.store.jobs import ACTIVE, JobStore

_log = logging.getLogger("disp.server")

ChildState = Literal["idle", "running", "failed"]

_LOOK_SECONDS = 0.5
_IDLE_SECONDS = 300.0
"""Without work for so long, the worker ends and gives back its memory."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_STEADY_SECONDS = 60.0
"""A worker that lived for so long was no failed start."""
_STOP_SECONDS = 40.0
_COMPLAINT_SECONDS = 60.0
"""How often the log says at most that the worker cannot be looked after."""


class WorkerChild:
    """Keeps a worker process running while a job is queued or runs.

    Args:
        command: The worker's command line; it must watch its standard input.
        database: Where jobs are found.
        idle: Seconds without work after which the worker is stopped.
    """

    def __init__(
        self, command: Sequence[str], database: Database, *, idle: float = _IDLE_SECONDS
    ) -> None:
        self._command = list(command)
        self._jobs = JobStore(database)
        self._idle = idle
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause = _FIRST_PAUSE
        self._not_before = 0.0
        self._next_complaint = 0.0
        self._wanted_at = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="worker-child", daemon=True)
        self.restarts = 0
        """How often the worker ended by itself and was started again, or will be."""

    @property
    def state(self) -> ChildState:
        """`failed` while it waits to start a worker that has ended by itself again."""
        if self._process is not None:
            return "running"
        return "failed" if time.monotonic() < self._not_before else "idle"

    @property
    def pid(self) -> int | None:
        """The worker's process, while there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Begins to look for work."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the worker in good order; returns when it has."""
        self._stopping.set()
        self._thread.join()
        self._end()

    def _keep(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            try:
                self._look()
            except Exception:
                # The server answers requests whatever happens to its worker.
                if time.monotonic() >= self._next_complaint:
                    _log.exception("The worker could not be looked after; trying on.")
                    self._next_complaint = time.monotonic() + _COMPLAINT_SECONDS

    def _look(self) -> None:
        now = time.monotonic()
        if self._process is not None and (status := self._process.poll()) is not None:
            self._ended(status, now)
        if self._jobs.list(limit=1, statuses=ACTIVE):
            self._wanted_at = now
            if self._process is None and now >= self._not_before:
                self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE)
                self._started = now
        elif self._process is not None and now - self._wanted_at > self._idle:
            self._end()

    def _ended(self, status: int, now: float) -> None:
        """Notes the death of the worker; the pause before the next one grows if it was quick."""
        self._close()
        if now - self._started > _STEADY_SECONDS:
            self._pause = _FIRST_PAUSE
        self._not_before = now + self._pause
        self.restarts += 1
        _log.error(
            "The worker ended with status %d; the next one starts in %.0f s if there is work.",
            status,
            self._pause,
        )
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None


def worker_command(
    *,
    data_dir: str,
    database_url: str | None,
    store: str | None,
    device: str,
    dtype: str,
    name: str,
) -> list[str]:
    """The command line of a server's worker."""
    # -P: a folder of the same name in the working directory must not take the module's place.
    command = [sys.executable, "-P", "-m", "server.jobs", "--lifeline"]
    command += ["--data-dir", data_dir, "--device", device, "--dtype", dtype, "--name", name]
    if database_url is not None:
        command += ["--database-url", database_url]
    if store is not None:
        command += ["--store", store]
    return command
