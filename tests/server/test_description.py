"""The description of the API: who may read it, and that it is true."""

from __future__ import annotations

import asyncio
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from server.app import ROUTERS, create_app
from server.config import ServerConfig
from server.engine import Engine
from server.gate import DOCS, PUBLIC
from server.routes.description import operation_id, scope_of
from server.routes.docs_page import page_of, type_of
from server.security.keys import KeyRing, new_secret, record_of
from tests.support.described import check_described, document, operation_of, operations
from tests.support.job_server import JobServer, job_server, upload_file
from tests.support.service import Service

OPERATIONS = {operation["operationId"]: operation for _, _, operation in operations()}


def application(**settings: Any) -> tuple[Any, str]:
    """An application without a model, and a key that may only ask."""
    secret = new_secret()
    engine = Engine(lambda: pytest.fail("not started"), queue_size=1, deadline=1)
    keys = KeyRing([record_of(secret, "reader", ("infer",))])
    return create_app(engine, ServerConfig(**settings), keys), secret


def get(app: Any, path: str, secret: str | None = None) -> httpx.Response:
    headers = {} if secret is None else {"authorization": f"Bearer {secret}"}

    async def scenario() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here.test") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(scenario())


@pytest.mark.parametrize("path", sorted(DOCS))
def test_a_key_is_needed_unless_the_operator_says_otherwise(path: str) -> None:
    closed, secret = application()
    assert get(closed, path).status_code == 401
    assert get(closed, path, secret).status_code == 200
    opened, _ = application(public_docs=True)
    assert get(opened, path).status_code == 200
    for other in ("/v1/models", "/metrics", f"{path}/", f"{path}x", path.upper(), "/v1/status"):
        assert get(opened, other).status_code == 401


def test_a_running_server_sends_the_document(service: Service) -> None:
    with service.client("infer") as client:
        assert client.get("/openapi.json").json() == document()
    with service.client("reader") as client:
        assert client.get("/openapi.json").status_code == 403


def test_every_route_is_described_with_its_scope() -> None:
    routes: list[Any] = [route for router in ROUTERS for route in router.routes]
    assert {operation_id(route) for route in routes} == set(OPERATIONS)
    assert len(routes) == len(OPERATIONS)
    for route in routes:
        operation = OPERATIONS[operation_id(route)]
        scope = scope_of(route)
        assert operation.get("security", []) == ([] if scope is None else [{"key": [scope]}])
        assert (scope is None) == (route.path in PUBLIC)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_answer_has_a_meaning_and_a_schema(name: str) -> None:
    responses = OPERATIONS[name]["responses"]
    assert {"400", "403", "413", "500"} < set(responses)
    for status, response in responses.items():
        assert response["description"]
        assert response["content"]
        assert response["headers"]["x-request-id"]["required"]
        for media in response["content"].values():
            Draft202012Validator.check_schema(media.get("schema") or media["itemSchema"])
        assert "x-refusals" not in response
        if int(status) >= 400:
            assert list(response["content"]) == ["application/json"]


def test_references_lead_somewhere() -> None:
    schemas = document()["components"]["schemas"]
    found = set(re.findall(r"'#/components/schemas/(\w+)'", str(document())))
    assert found <= set(schemas)
    assert not {"HTTPValidationError", "ValidationError"} & set(schemas)
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (418, {}, {}),
        (200, {"object": "list"}, {}),
        (404, {"error": {"message": "m", "type": "server_error", "code": "job_not_found"}}, {}),
        (401, {"error": {"message": "m", "type": "server_error", "code": "job_not_found"}}, {}),
        (200, {"object": "list", "data": []}, {"x-request-id": ""}),
        (200, {"object": "list", "data": []}, {"content-type": "text/plain"}),
    ],
    ids=["status", "body", "status-of-another", "code", "header", "media-type"],
)
def test_an_answer_that_is_not_described_is_found(
    status: int, body: Any, headers: dict[str, str]
) -> None:
    """The check that every test of the server runs behind every answer would fail."""
    sent = {"x-request-id": "r", "x-should-retry": "false"} | headers
    sent = {name: value for name, value in sent.items() if value}
    request = httpx.Request("GET", "http://here.test/v1/models")
    with pytest.raises(AssertionError, match="/v1/models"):
        check_described(httpx.Response(status, json=body, headers=sent, request=request))


def test_addresses_are_found_by_what_they_stand_for() -> None:
    by_id = operation_of("GET", "/v1/models/a@sha256:0/b")
    assert by_id is OPERATIONS["models_get_model"]
    assert operation_of("GET", "/v1/files/a/b") is None
    assert operation_of("PUT", "/v1/files") is None


class Page(HTMLParser):
    """What a page would load, and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: set[str | None] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "href", "action", "data"):
                self.links.append(value or "")
            if name == "id":
                self.ids.add(value)


def test_the_page_needs_nothing_but_itself(service: Service) -> None:
    with service.client("infer") as client:
        response = client.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    page = Page(response.text)
    assert not page.tags & {"script", "iframe", "img", "link", "object", "embed", "form"}
    assert "url(" not in response.text
    assert "@import" not in response.text
    links = {link for link in page.links if not link.startswith("#")}
    assert links == {"openapi.json"}
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    assert set(OPERATIONS) <= page.ids
    assert set(document()["components"]["schemas"]) <= page.ids


def test_texts_of_the_document_are_text_on_the_page() -> None:
    hostile = "<script>alert(1)</script>"
    described = {
        "info": {"title": hostile, "version": hostile, "description": hostile},
        "paths": {
            "/x": {
                "get": {
                    "operationId": hostile,
                    "description": hostile,
                    "parameters": [{"name": hostile, "in": "query", "schema": {"enum": [hostile]}}],
                    "responses": {
                        "200": {
                            "description": hostile,
                            "content": {hostile: {"schema": {"const": hostile}}},
                        }
                    },
                }
            }
        },
        "components": {
            "schemas": {
                hostile: {
                    "description": hostile,
                    "properties": {hostile: {"$ref": hostile, "default": hostile}},
                }
            }
        },
    }
    assert "script" not in Page(page_of(described)).tags


@pytest.mark.parametrize(
    ("schema", "shown"),
    [
        ({"$ref": "#/components/schemas/Job"}, '<a href="#Job">Job</a>'),
        ({"const": 1}, "1"),
        (
            {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]},
            "integer (at least 0) |",
        ),
        ({"type": "array", "items": {"type": "string"}}, "list of (string)"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "object of (string)"),
        ({"type": "object", "properties": {"file": {"type": "string"}}}, "file: string"),
        ({}, "any JSON value"),
    ],
)
def test_a_schema_is_a_line_of_text(schema: dict[str, Any], shown: str) -> None:
    assert str(type_of(schema)).startswith(shown)


@pytest.fixture
def server(tiny_checkpoint: Path, tmp_path: Path) -> Any:
    with job_server(tmp_path, tiny_checkpoint) as server:
        yield server


ROW = b'{"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]}\n'


@pytest.mark.parametrize(
    ("header", "status", "body"),
    [
        ("bytes=0-3", 206, ROW[:4]),
        ("bytes=-3", 206, ROW[-3:]),
        ("bytes=4-", 206, ROW[4:]),
        ("bytes=0-999999", 206, ROW),
        ("bytes=999999-", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=5-2", 200, ROW),
        ("bytes=-", 200, ROW),
        ("bytes=0-1,3-4", 200, ROW),
        ("lines=0-1", 200, ROW),
        ("bytes=" + "9" * 5000 + "-", 200, ROW),
        ("nonsense", 200, ROW),
    ],
)
def test_a_range_of_a_file_is_sent_refused_or_ignored(
    server: JobServer, header: str, status: int, body: bytes | None
) -> None:
    uploaded = upload_file(server, ROW, "rows.jsonl").json()
    with server.client() as client:
        response = client.get(f"/v1/files/{uploaded['id']}/content", headers={"range": header})
    assert response.status_code == status
    if body is None:
        assert response.json()["error"]["code"] == "range_not_satisfiable"
        assert f"{len(ROW)} bytes" in response.json()["error"]["message"]
    else:
        assert response.content == body


def test_a_range_that_depends_on_another_version_gets_the_whole(server: JobServer) -> None:
    uploaded = upload_file(server, ROW, "rows.jsonl").json()
    headers = {"range": "bytes=999999-", "if-range": '"another"'}
    with server.client() as client:
        response = client.get(f"/v1/files/{uploaded['id']}/content", headers=headers)
    assert (response.status_code, response.content) == (200, ROW)


@pytest.mark.parametrize(
    "address",
    [
        "/v1/files/%00",
        "/v1/files?after=%00",
        "/v1/files?purpose=a%00b",
        "/v1/fine_tuning/jobs/a%00",
        "/v1/checkpoints/%00",
        "/v1/models/%00",
        "/health?%00",
    ],
)
def test_an_address_has_no_nul_character(server: JobServer, address: str) -> None:
    with server.client("admin") as client:
        response = client.get(address)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "http_error")
