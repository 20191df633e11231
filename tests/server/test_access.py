"""Every address is closed unless it is meant to be open."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from purifier import MaskingConfig
from server.answering import check_scope
from server.app import ROUTERS, check_closed, create_app
from server.config import ServerConfig
from server.engine import Engine
from server.errors import ScopeMissing
from server.gate import PUBLIC
from server.routes.access import Require
from server.schemas import ChatMessage, ChatRequest, DefenseRequest, TextPart
from server.security.keys import SCOPES, Principal
from tests.support.service import Body, Service

DEFAULT = MaskingConfig()
EVERYTHING = Principal("key-1", "operator", frozenset(SCOPES))


def routes() -> Iterator[tuple[str, APIRoute]]:
    for router in ROUTERS:
        for route in router.routes:
            assert isinstance(route, APIRoute)
            for method in sorted(route.methods or ()):
                yield method, route


def scope_of(route: APIRoute) -> str:
    guards = [item.call for item in route.dependant.dependencies]
    return next(guard.scope for guard in guards if isinstance(guard, Require))


GUARDED = [(method, route) for method, route in routes() if route.path not in PUBLIC]
NAMES = [f"{method} {route.path}" for method, route in GUARDED]


def test_the_application_has_no_other_routes() -> None:
    engine = Engine(lambda: pytest.fail("not started"), queue_size=1, deadline=1)
    app = create_app(engine, ServerConfig(insecure_no_auth=True), None)
    assert len(app.router.routes) == len(ROUTERS)
    assert {route.path for _, route in routes()} >= PUBLIC
    assert GUARDED


@pytest.mark.parametrize(("method", "route"), GUARDED, ids=NAMES)
def test_route_needs_a_key_and_its_scope(service: Service, method: str, route: APIRoute) -> None:
    path = re.sub(r"\{.*?\}", "default", route.path)
    with service.client(None) as client:
        nobody = client.request(method, path)
        stranger = client.request(method, path, headers={"authorization": "Bearer sk-stranger"})
        basic = client.request(method, path, headers={"authorization": "Basic c2s6c2s="})
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "missing_key")
    assert (stranger.status_code, stranger.json()["error"]["code"]) == (401, "invalid_key")
    assert (basic.status_code, basic.json()["error"]["code"]) == (401, "missing_key")
    assert nobody.headers["www-authenticate"] == "Bearer"
    json_body: dict[str, Any] = {"json": {}} if method == "POST" else {}
    scope = scope_of(route)
    with service.client("infer" if scope == "jobs:read" else "reader") as client:
        other = client.request(method, path, **json_body)
    assert (other.status_code, other.json()["error"]["code"]) == (403, "scope_missing")
    assert scope in other.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/nothing", "/health/other", "/openapi.json", "/metrics"])
def test_unknown_addresses_need_a_key_too(service: Service, path: str) -> None:
    with service.client(None) as client:
        assert client.get(path).status_code == 401


def test_a_refused_large_body_still_reads_its_answer(service: Service) -> None:
    with service.client(None) as client:
        response = client.post("/v1/chat/completions", content=b" " * 5_000_000)
    assert response.status_code == 401


def test_an_open_route_is_refused_at_the_start() -> None:
    router = APIRouter()
    router.add_api_route("/forgotten", lambda: {}, methods=["GET"])
    with pytest.raises(RuntimeError, match="forgotten"):
        check_closed(router)


@pytest.mark.parametrize(
    ("defense", "param"),
    [
        ({"enabled": False}, "defense.enabled"),
        ({"ratio": 0.0}, "defense.ratio"),
        ({"ratio": 0.01}, "defense.ratio"),
        ({"ranker": "random"}, "defense.ranker"),
        ({"ranker": "leave-one-out", "threshold": 0.0}, "defense.ranker"),
        ({"level": "token"}, "defense.level"),
        ({"threshold": DEFAULT.threshold + 1}, "defense.threshold"),
        ({"threshold": 1000.0}, "defense.threshold"),
        ({"probes": DEFAULT.probes + 1}, "defense.probes"),
        ({"top_k": DEFAULT.top_k + 1}, "defense.top_k"),
        ({"temperature": 2.0}, "defense.temperature"),
        ({"pooling": 9}, "defense.pooling"),
        ({"ratio": 0.9, "pooling": 9}, "defense.pooling"),
    ],
)
def test_another_defence_needs_a_scope(
    service: Service, ask: Callable[..., Body], defense: Body, param: str
) -> None:
    before = service.status()["admitted"]
    with service.client("infer") as client:
        response = client.post("/v1/chat/completions", json=ask(defense=defense))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (403, "scope_missing", param)
    assert service.status()["admitted"] == before


def test_settings_that_may_differ_without_a_scope_are_few() -> None:
    nobody = Principal("key-0", "nobody", frozenset({"infer"}))
    config = ServerConfig(masking=replace(DEFAULT, ratio=0.5, ranker="occlusion", threshold=5.0))
    free = {"ratio": (0.75, 0.25), "threshold": (2.5, 7.5), "seed": (17, None)}
    for name, (allowed, refused) in free.items():
        check_scope(asking(**{name: allowed}), nobody, config)
        if refused is not None:
            with pytest.raises(ScopeMissing) as caught:
                check_scope(asking(**{name: refused}), nobody, config)
            assert caught.value.param == f"defense.{name}"
    settings = asdict(config.masking)
    check_scope(asking(**settings), nobody, config)
    check_scope(asking(return_saliency=True), nobody, config)
    check_scope(asking(ratio=math.nan, enabled=False), EVERYTHING, config)
    with pytest.raises(ScopeMissing):
        check_scope(asking(ratio=math.nan), nobody, config)
    other = {"level": "token", "ranker": "fisher", "probes": 7, "top_k": 6, "temperature": 2.0}
    other |= {"pooling": 9, "float64": False, "shortlist": 9, "verify": 2, "gate": 2.0}
    other |= {"scored_length": 1, "probed": 8, "probing": "masking"}
    assert set(other) | set(free) == set(settings)
    for name, value in other.items():
        with pytest.raises(ScopeMissing) as caught:
            check_scope(asking(**{name: value}), nobody, config)
        assert caught.value.param == f"defense.{name}"
        check_scope(asking(**{name: value}), EVERYTHING, config)


def test_another_level_of_effort_needs_the_scope() -> None:
    nobody = Principal("key-0", "nobody", frozenset({"infer"}))
    balanced = ServerConfig(masking=DEFAULT.adjusted(effort="balanced"))
    check_scope(asking(effort="balanced"), nobody, balanced)
    for effort in ("fast", "thorough"):
        with pytest.raises(ScopeMissing):
            check_scope(asking(effort=effort), nobody, balanced)
        check_scope(asking(effort=effort), EVERYTHING, balanced)


def asking(**defense: Any) -> ChatRequest:
    turn = ChatMessage(role="user", content=[TextPart(text="What?")])
    return ChatRequest(messages=[turn], defense=DefenseRequest(**defense))


def test_strengthening_the_defence_needs_none(service: Service, ask: Callable[..., Body]) -> None:
    with service.client("infer") as client:
        sent = ask(
            max_tokens=4, defense={"enabled": True, "ratio": 0.5, "threshold": 0.0, "seed": 3}
        )
        answered = client.post("/v1/chat/completions", json=sent).raise_for_status().json()
    assert answered["defense"]["applied"] is True
    assert answered["defense"]["ratio"] == 0.5


async def get(app: Any, path: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return await client.get(path, headers=headers)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 503),
        ("127.0.0.1", 503),
        ("[::1]:8000", 503),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
def test_without_keys_only_this_machines_names_work(host: str, status: int) -> None:
    engine = Engine(lambda: pytest.fail("not started"), queue_size=1, deadline=1)
    app = create_app(engine, ServerConfig(insecure_no_auth=True), None)
    response = asyncio.run(get(app, "/v1/models", host=host))
    assert response.status_code == status


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1:8000"}, False),
        ({"origin": "http://localhost:8000"}, False),
        ({"origin": "http://[::1]:8000"}, False),
        ({"sec-fetch-site": "cross-site"}, True),
        ({"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:8000"}, True),
        ({"sec-fetch-site": "same-site", "origin": "http://localhost:3000"}, True),
        ({"origin": "https://evil.example"}, True),
        ({"origin": "http://localhost.evil.example:8000"}, True),
        ({"origin": "https://evil.example/?http://localhost"}, True),
        ({"origin": "null"}, True),
        ({"origin": ""}, True),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/health"),
        ("POST", "/v1/deployments/rollback"),
        ("POST", "/v1/files"),
    ],
)
def test_without_keys_no_page_of_the_web_is_answered(
    method: str, path: str, headers: dict[str, str], refused: bool
) -> None:
    """What a browser sends without asking for leave: forms and other simple requests."""
    engine = Engine(lambda: pytest.fail("not started"), queue_size=1, deadline=1)
    app = create_app(engine, ServerConfig(insecure_no_auth=True), None)

    async def scenario() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, headers=headers)

    response = asyncio.run(scenario())
    code = response.json().get("error", {}).get("code")
    assert (response.status_code == 403, code == "origin_refused") == (refused, refused)


def test_with_keys_a_page_of_the_web_is_judged_by_its_key(service: Service) -> None:
    headers = {"sec-fetch-site": "cross-site", "origin": "https://chat.example"}
    with service.client() as client:
        assert client.get("/v1/models", headers=headers).status_code == 200
    with service.client(None) as client:
        assert client.get("/v1/models", headers=headers).status_code == 401


def test_application_without_keys_must_be_asked_for() -> None:
    engine = Engine(lambda: pytest.fail("not started"), queue_size=1, deadline=1)
    with pytest.raises(ValueError, match="insecure_no_auth"):
        create_app(engine, ServerConfig(), None)


def test_an_unexpected_error_says_nothing_about_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine(lambda: pytest.fail("not started"), queue_size=1, deadline=1)

    def fail() -> None:
        raise RuntimeError("an object at 0x7f3a")

    monkeypatch.setattr(engine, "serving", fail)
    app = create_app(engine, ServerConfig(insecure_no_auth=True), None)

    async def scenario() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/v1/models", headers={"x-request-id": "mine"})

    response = asyncio.run(scenario())
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "0x" not in response.text
    assert response.headers.get_list("x-request-id") == ["mine"]
    assert response.headers["x-should-retry"] == "false"


def test_websockets_are_closed() -> None:
    engine = Engine(lambda: pytest.fail("not started"), queue_size=1, deadline=1)
    app = create_app(engine, ServerConfig(insecure_no_auth=True), None)
    sent: list[Any] = []

    async def scenario() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "websocket", "path": "/v1/models", "headers": []}
        await app(scope, receive, send)

    asyncio.run(scenario())
    assert sent == [{"type": "websocket.close", "code": 1008}]
