"""A real `disp serve` process to be measured: started, asked, watched, stopped."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from server.security.keys import SCOPES, create_key

CHAT = "/v1/chat/completions"
PATIENCE = 300.0
"""Seconds after which a request counts as hung; far above all that a queue can take."""

_MB = 1e6
_STOP_SECONDS = 60.0
_IDLE_SECONDS = 60.0


@dataclass(frozen=True)
class Usage:
    """What the server's process holds.

    Attributes:
        at: Monotonic seconds.
        rss_mb: Resident memory.
        open_files: File descriptors.
    """

    at: float
    rss_mb: float
    open_files: int


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        url: Its address.
        key: A key with every scope.
        keys_file: Where more keys may be made.
        process: Its process.
        data: Its data folder.
        log: What it writes to standard error.
        options: What it was started with.
    """

    url: str
    key: str
    keys_file: Path
    process: psutil.Process
    data: Path
    log: Path
    options: tuple[str, ...]

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}", "content-type": "application/json"}

    def client(self) -> httpx.AsyncClient:
        """A client without a bound on connections, that waits long enough to see what hangs."""
        return httpx.AsyncClient(
            base_url=self.url,
            headers=self.headers,
            timeout=PATIENCE,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            trust_env=False,
            verify=False,  # plain HTTP; certificates would be read for every client
        )

    def usage(self) -> Usage:
        """What the process holds now."""
        with self.process.oneshot():
            rss = self.process.memory_info().rss / _MB
            return Usage(time.monotonic(), round(rss, 1), self.process.num_fds())

    def errors(self) -> list[str]:
        """Lines of the log that tell of a failure."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return [line for line in lines if line.startswith(("ERROR", "CRITICAL", "Traceback"))]

    async def status(self, client: httpx.AsyncClient) -> dict[str, Any]:
        """The engine's counters."""
        found: dict[str, Any] = (await client.get("/v1/status")).raise_for_status().json()
        return found

    async def until_idle(self, client: httpx.AsyncClient) -> float:
        """Waits until nothing runs or waits; returns the seconds.

        Raises:
            TimeoutError: If a slot is stuck.
        """
        start = time.monotonic()
        async with asyncio.timeout(_IDLE_SECONDS):
            while True:
                status = await self.status(client)
                if status["running"] == status["waiting"] == 0:
                    return round(time.monotonic() - start, 3)
                await asyncio.sleep(0.05)


class Watch:
    """Looks at a process again and again while a block runs.

    Args:
        server: Whose process.
        every: Seconds between two looks.
    """

    def __init__(self, server: Served, every: float = 0.25) -> None:
        self._server = server
        self._every = every
        self.seen: list[Usage] = []

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _look(self) -> None:
        while True:
            self.seen.append(self._server.usage())
            await asyncio.sleep(self._every)


@contextmanager
def served(options: Sequence[str]) -> Iterator[Served]:
    """Starts a server in a data folder of its own; ends it with the block.

    Args:
        options: Of `disp serve`, besides port, keys and data folder.

    Raises:
        RuntimeError: If it does not start or ends with another status than 0.
    """
    with tempfile.TemporaryDirectory(prefix="disp-bench-") as folder:
        keys, log = Path(folder) / "keys.json", Path(folder) / "log.txt"
        key, _ = create_key(keys, "benchmark", SCOPES)
        command = [sys.executable, "-m", "server", *options, "--port", "0"]
        data = Path(folder) / "data"
        command += ["--keys-file", str(keys), "--data-dir", str(data)]
        environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}  # as the image has it
        with (
            log.open("wb") as errors,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            ) as process,
        ):
            try:
                url = _address(process, log)
                process_handle = psutil.Process(process.pid)
                yield Served(url, key, keys, process_handle, data, log, tuple(options))
            finally:
                status = _stop(process)
        if status != 0:
            raise RuntimeError(f"The server ended with status {status}.")


def idle_usage(usages: Sequence[Usage]) -> dict[str, float]:
    """Median of several looks at an idle process."""
    return {
        "rss_mb": statistics.median(usage.rss_mb for usage in usages),
        "open_files": statistics.median(usage.open_files for usage in usages),
    }


async def look(server: Served, times: int = 5, every: float = 0.1) -> dict[str, float]:
    """What an idle server holds."""
    seen = []
    for _ in range(times):
        seen.append(server.usage())
        await asyncio.sleep(every)
    return idle_usage(seen)


def as_dicts(usages: Sequence[Usage]) -> list[dict[str, float]]:
    """Looks, JSON-ready, with times from the first one on."""
    first = usages[0].at if usages else 0.0
    return [{**asdict(usage), "at": round(usage.at - first, 1)} for usage in usages]


def _address(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("listening on "):
            return line.removeprefix("listening on ").strip()
    raise RuntimeError(f"The server did not start:\n{log.read_text('utf-8', 'replace')[-2000:]}")


def _stop(process: subprocess.Popen[str]) -> int:
    process.terminate()
    try:
        return process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
