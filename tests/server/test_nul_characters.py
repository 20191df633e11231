"""A NUL character, which PostgreSQL takes in no text, is refused and never ends in a 500."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.job_server import JOBS, JobServer, job_server, upload_file

NUL = "a\0b"


@pytest.fixture
def server(tiny_checkpoint: Path, tmp_path: Path, postgres_url: str) -> Iterator[JobServer]:
    with job_server(tmp_path, tiny_checkpoint, database_url=postgres_url) as server:
        yield server


FIELDS: dict[str, Any] = {
    "metadata": {"metadata": {"note": NUL}},
    "name-of-metadata": {"metadata": {NUL: "note"}},
    "training_file": {"training_file": NUL},
    "validation_file": {"validation_file": NUL},
    "model": {"model": NUL},
    "suffix": {"suffix": NUL},
    "prompt": {"method": {"type": "disp", "disp": {"prompt": NUL}}},
    "trigger": {"method": {"type": "disp", "disp": {"evaluation": {"trigger": {NUL: 1}}}}},
    "keyword": {"method": {"type": "disp", "disp": {"evaluation": {"keywords": [NUL]}}}},
    "stop": {"method": {"type": "disp", "disp": {"generation": {"stop": [NUL]}}}},
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS.keys())
def test_in_a_job(server: JobServer, fields: dict[str, Any]) -> None:
    with server.client() as client:
        response = client.post(JOBS, json={"training_file": "demo", **fields})
    assert response.status_code == 422, response.text
    assert "NUL" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/files", JOBS])
def test_in_an_address(server: JobServer, path: str) -> None:
    with server.client() as client:
        assert client.get(f"{path}/a%00b").status_code == 400
        assert client.get(path, params={"after": NUL}).status_code == 400


def test_in_a_filename(server: JobServer) -> None:
    row = b'{"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]}\n'
    response = upload_file(server, row, 'rows%00".jsonl')
    assert response.status_code == 200
    assert "\0" not in response.json()["filename"]


@pytest.mark.parametrize("header", ["idempotency-key", "x-request-id"])
def test_in_a_header_nothing_that_is_not_printable_is_kept(server: JobServer, header: str) -> None:
    with server.client() as client:
        response = client.post(JOBS, json={"training_file": "demo"}, headers={header: "a\x7fb"})
    assert response.status_code in (202, 422)
    assert "\x7f" not in response.headers["x-request-id"]
