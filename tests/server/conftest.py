"""The running server and the question that most tests ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from purifier.mdlm.base import Mdlm
from purifier.mdlm.registry import load_mdlm
from server.security.keys import SCOPES, Scope, create_key
from tests.support.job_server import JobServer, job_server
from tests.support.postgres import postgres_cluster, postgres_url  # noqa: F401 - fixtures
from tests.support.service import Body, Service, data_url, start_server, stop_server

KEYS: dict[str, tuple[Scope, ...]] = {
    "all": SCOPES,
    "infer": ("infer",),
    "reader": ("jobs:read",),
}


@pytest.fixture(scope="session")
def service(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One server for the whole session; two requests may run, and two wait."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    keys = {name: create_key(file, name, scopes)[0] for name, scopes in KEYS.items()}
    limits = ["--queue-size", "2", "--max-batch", "2"]
    process, url = start_server(
        ["--model", str(tiny_checkpoint), "--keys-file", str(file), *limits]
    )
    yield Service(url, keys, process)
    stop_server(process)


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobServer]:
    """The application with its stores for a module, without a model: jobs stay queued."""
    with job_server(tmp_path_factory.mktemp("home"), tiny_checkpoint) as running:
        yield running


@pytest.fixture(scope="session")
def mdlm(tiny_checkpoint: Path) -> Mdlm:
    return load_mdlm(tiny_checkpoint)


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """A real picture: smooth colours, 96 x 64."""
    red = Image.linear_gradient("L").resize((96, 64))
    green = Image.radial_gradient("L").resize((96, 64))
    return Image.merge("RGB", (red, green, Image.new("L", (96, 64), 90)))


@pytest.fixture(scope="session")
def ask(picture: Image.Image) -> Callable[..., Body]:
    """Makes the body of a question about the picture; keywords become fields."""

    def body(text: str = "What is this?", url: str | None = None, **fields: Any) -> Body:
        content = [
            {"type": "image_url", "image_url": {"url": url or data_url(picture)}},
            {"type": "text", "text": text},
        ]
        return {"model": "default", "messages": [{"role": "user", "content": content}], **fields}

    return body
