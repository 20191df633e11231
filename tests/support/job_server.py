"""The application on a real socket, with real stores and a model that is never loaded."""

from __future__ import annotations

import io
import json
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from PIL import Image

from server.app import create_app
from server.config import ServerConfig
from server.data_sets import DataOptions, DataSets
from server.engine import Engine
from server.jobs.service import JobService
from server.schemas import ErrorEnvelope
from server.security.keys import SCOPES, KeyRing, Scope, new_secret, record_of
from server.services import Services
from server.store.audit import AuditLog
from server.store.blobs import BlobStore
from server.store.checkpoints import CheckpointStore
from server.store.database import Database
from server.store.events import EventLog
from server.store.files import FileStore
from tests.support.described import check_described

JOBS = "/v1/fine_tuning/jobs"
KEYS: dict[str, tuple[Scope, ...]] = {
    "admin": SCOPES,
    "alice": ("jobs:read", "jobs:write"),
    "bob": ("jobs:read", "jobs:write"),
    "reader": ("jobs:read",),
    "infer": ("infer",),
}


@dataclass(frozen=True)
class JobServer:
    """A running application, its keys, and the parts behind it."""

    url: str
    keys: dict[str, str]
    key_ids: dict[str, str]
    home: Path
    engine: Engine
    services: Services
    store: BlobStore
    events: EventLog

    def client(self, key: str = "alice") -> httpx.Client:
        headers = {"authorization": f"Bearer {self.keys[key]}"}
        return httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=60,
            trust_env=False,
            event_hooks={"response": [check_described]},
        )

    @property
    def jobs(self) -> JobService:
        assert self.services.jobs is not None
        return self.services.jobs

    @property
    def files(self) -> FileStore:
        assert self.services.files is not None
        return self.services.files

    @property
    def checkpoints(self) -> CheckpointStore:
        assert self.services.checkpoints is not None
        return self.services.checkpoints


@contextmanager
def job_server(
    home: Path,
    checkpoint: Path,
    config: ServerConfig | None = None,
    datasets: Callable[[FileStore], DataSets] | None = None,
    database_url: str | None = None,
) -> Iterator[JobServer]:
    """Serves until the end of the block."""
    config = config or ServerConfig()
    database = Database(database_url or f"sqlite:///{home / 'disp.sqlite'}")
    database.create_tables()
    store = BlobStore(home / "blobs")
    files = FileStore(database, home / "files", config.upload, store)
    checkpoints = CheckpointStore(database, home / "checkpoints")
    checkpoints.open_deployment(checkpoints.register(checkpoint).id)
    services = Services(
        files=files,
        datasets=datasets(files) if datasets else DataOptions(demo="insertion").open(files),
        jobs=JobService(database, store),
        checkpoints=checkpoints,
        audit=AuditLog(database),
    )
    secrets = {name: new_secret() for name in KEYS}
    records = {name: record_of(secrets[name], name, scopes) for name, scopes in KEYS.items()}
    engine = Engine(_never, queue_size=1, deadline=1)
    app = create_app(engine, config, KeyRing(list(records.values())), services)
    with _listening(app) as url:
        yield JobServer(
            url=url,
            keys=secrets,
            key_ids={name: record.id for name, record in records.items()},
            home=home,
            engine=engine,
            services=services,
            store=store,
            events=EventLog(database),
        )
    database.close()


@contextmanager
def _listening(app: Any) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, lifespan="off", log_level="warning", timeout_graceful_shutdown=10)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
    assert not thread.is_alive()


def _never() -> Any:
    raise AssertionError("The model is not loaded in these tests.")


TEXT_ROW = json.dumps(
    {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}]}
).encode()
"""A row without an image."""


def llava_row(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A row of a LLaVA label file about the image `<number>.png`."""
    row = {
        "id": f"row-{number}",
        "image": f"{number}.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is this?"},
            {"from": "gpt", "value": "A picture."},
        ],
    }
    return row | changes


def data_archive(rows: int = 2, folder: str = "") -> bytes:
    """A zip of a LLaVA data set and its images, below `folder`."""
    image = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 10, 10)).save(image, "PNG")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        labels = json.dumps([llava_row(number) for number in range(rows)])
        archive.writestr(f"{folder}data.json", labels)
        for number in range(rows):
            archive.writestr(f"{folder}images/{number}.png", image.getvalue())
    return file.getvalue()


def create_job(server: JobServer, key: str = "alice", **body: Any) -> dict[str, Any]:
    """A job on the demo's data."""
    with server.client(key) as client:
        response = client.post(JOBS, json={"training_file": "demo"} | body)
    assert response.status_code == 202, response.text
    made: dict[str, Any] = response.json()
    return made


def upload_file(
    server: JobServer,
    content: bytes,
    filename: str = "data.zip",
    key: str = "alice",
    **fields: str,
) -> httpx.Response:
    """Sends a file for training."""
    with server.client(key) as client:
        return client.post(
            "/v1/files",
            data={"purpose": "fine-tune"} | fields,
            files={"file": (filename, content)},
        )


def refusal(response: httpx.Response) -> tuple[int, str, str | None]:
    """Status, code and field of a refusal in the form of every other one."""
    body = ErrorEnvelope.model_validate(response.json()).error
    assert body.message.endswith(".")
    assert response.headers["x-should-retry"] == "false"
    return response.status_code, body.code, body.param
