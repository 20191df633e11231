"""The fuzzing finds what it is for: a server on loopback that answers as it should not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz import write
from benchmarks.fuzz_cases import CHAT, Caller, Tally, fuzz

ERROR = {"description": "no", "content": {"application/json": {"schema": {"type": "object"}}}}
OK = {
    "description": "yes",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"n": {"type": "integer"}},
                "required": ["n"],
            }
        }
    },
}
DOCUMENT = {
    "openapi": "3.1.0",
    "info": {"title": "t", "version": "1"},
    "paths": {
        "/v1/chat/completions": {
            "post": {
                "operationId": "chat",
                "security": [{"key": ["infer"]}],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"type": "object"}}},
                },
                "responses": {"200": OK, "401": ERROR, "403": ERROR, "422": ERROR},
            }
        }
    },
    "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
}
CALLERS = {
    "none": Caller(None, frozenset()),
    "jobs:read": Caller("sk-jobs", frozenset({"jobs:read"})),
    "all": Caller("sk-all", frozenset({"infer", "jobs:read"})),
}


@contextmanager
def serving(faults: dict[str, tuple[int, Any]]) -> Iterator[str]:
    """A server that is right but for the faults: key that was sent -> status and body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._say(200, DOCUMENT)

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"] or 0))
            key = (self.headers["authorization"] or "").removeprefix("Bearer ")
            right: dict[str, tuple[int, Any]] = {"": (401, {}), "sk-jobs": (403, {})}
            try:
                valid = isinstance(json.loads(content), dict)
            except ValueError:
                valid = False
            self._say(*{**right, **faults}.get(key, (200, {"n": 1}) if valid else (422, {})))

        def _say(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def tallies(faults: dict[str, tuple[int, Any]]) -> dict[str, Tally]:
    with serving(faults) as url:
        return dict(fuzz(url, CALLERS, lambda _: {}, cases=30, start=0))


def test_a_server_that_is_right_has_no_failures() -> None:
    found = tallies({})
    assert set(found) == {CHAT, f"{CHAT}, questions"}
    assert not [failure for tally in found.values() for failure in tally.failures]
    assert found[CHAT].cases >= 8
    assert 200 in found[CHAT].statuses


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"sk-all": (500, {})}, "ServerError: "),
        ({"sk-all": (418, {})}, "UndefinedStatusCode: "),
        ({"sk-all": (200, {"n": "one"})}, "JsonSchemaError: "),
        ({"sk-all": (200, {"n": 1})}, "AcceptedNegativeData: "),
        ({"sk-all": (401, {})}, "a known key got 401"),
        ({"": (200, {"n": 1})}, "an unknown key got 200"),
        ({"sk-jobs": (200, {"n": 1})}, "a key without infer got 200"),
    ],
    ids=["500", "undescribed", "schema", "invalid-taken", "known-401", "nobody", "scope"],
)
def test_what_is_wrong_is_found(faults: dict[str, tuple[int, Any]], said: str) -> None:
    failures = [failure for tally in tallies(faults).values() for failure in tally.failures]
    assert any(said in failure for failure in failures), failures[:3]
    assert all(len(failure) < 1_300 for failure in failures)


def test_the_page_says_how_many_were_sent_and_wrong(tmp_path: Path) -> None:
    facts = {
        "command": "python -m benchmarks.fuzz --cases 7",
        "database": "SQLite",
        "python": "3.11",
        "schemathesis": "4",
        "hypothesis": "6",
        "seconds": 5,
        "logged_errors": ["ERROR disp.server: one"],
    }
    write(facts, {CHAT: Tally({200: 5, 422: 2}, ["wrong"])}, tmp_path)
    text = " ".join((tmp_path / "fuzz.md").read_text("utf-8").split())
    assert "7 generated requests" in text
    assert "1 answers were wrong" in text
    assert "logged 1 errors" in text
    assert f"| `{CHAT}` | 7 | 200: 5, 422: 2 | 1 |" in text
    figures = json.loads((tmp_path / "fuzz.json").read_text("utf-8"))
    assert (figures["cases"], figures["failures"]) == (7, 1)
