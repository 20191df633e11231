"""A real server on loopback, and what its tests ask it with."""

from __future__ import annotations

import atexit
import base64
import io
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from tests.support.described import check_described
from tests.support.warm_server import WarmServer

ROOT = Path(__file__).parents[2]
START_SECONDS = 300

Body = dict[str, Any]


@dataclass(frozen=True)
class Service:
    """A running server and its keys by name."""

    url: str
    keys: dict[str, str]
    process: WarmServer

    def client(self, key: str | None = "all") -> httpx.Client:
        headers = {} if key is None else {"authorization": f"Bearer {self.keys[key]}"}
        return httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=60,
            trust_env=False,
            event_hooks={"response": [check_described]},
        )

    def status(self) -> dict[str, Any]:
        with self.client() as client:
            status: dict[str, Any] = client.get("/v1/status").raise_for_status().json()
            return status


def start_server(
    arguments: list[str], data: Path | None = None, *, jobs: bool = False
) -> tuple[WarmServer, str]:
    """Starts a server and waits for the line that names its address.

    Args:
        arguments: Of `python -m server`.
        data: Its data folder; by default a fresh one.
        jobs: Whether it has a worker for jobs.
    """
    words = ["--port", "0", "--device", "cpu", *([] if jobs else ["--no-worker"]), *arguments]
    folder = str(data or _fresh_folder())
    process = WarmServer(words, {**os.environ, "OMP_NUM_THREADS": "1", "DISP_DATA_DIR": folder})
    # A server that hangs is ended, which closes the pipe that is read here.
    watchdog = threading.Timer(START_SECONDS, process.kill)
    watchdog.start()
    try:
        for line in process.stdout:
            if line.startswith("listening on "):
                return process, line.removeprefix("listening on ").strip()
    finally:
        watchdog.cancel()
    process.stdout.close()
    raise AssertionError(f"The server ended with status {process.wait()} before it listened.")


def stop_server(process: WarmServer) -> int:
    process.terminate()
    try:
        return process.wait(60)
    finally:
        process.kill()
        process.stdout.close()


def data_url(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _fresh_folder() -> str:
    folder = tempfile.mkdtemp(prefix="disp-data-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
