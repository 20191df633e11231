"""Requests that wait: for their preparation, for a model that is loading, for nobody."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from purifier.mdlm.base import Mdlm
from purifier.mdlm.registry import load_mdlm
from server.app import create_app
from server.config import ServerConfig
from server.engine import Engine, Serving
from tests.support.engine import SECONDS, Start, starting
from tests.support.service import Body

CHAT = "/v1/chat/completions"
PLACES = 3


@pytest.fixture
def serving(tiny_checkpoint: Path) -> Serving:
    """A model of its own, whose weights may be dropped."""
    return Serving(load_mdlm(tiny_checkpoint), "old@sha256:000000000000", 0)


@pytest.fixture
def start(serving: Serving) -> Iterator[Start]:
    with starting(serving, queue_size=PLACES, deadline=60.0) as start:
        yield start


def app_of(engine: Engine) -> Any:
    return create_app(engine, ServerConfig(insecure_no_auth=True), None)


@asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)
    async with (
        asyncio.timeout(SECONDS),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        yield client


class Caller:
    """A client that can go away."""

    def __init__(self, app: Any, body: Body) -> None:
        self._body = json.dumps(body).encode()
        self._sent = False
        self._left = asyncio.Event()
        self._status = 0
        headers = {"host": "127.0.0.1", "content-type": "application/json"}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": CHAT,
            "raw_path": CHAT.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        self._asking = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def leave(self) -> int:
        """Goes away; returns the status that nobody reads."""
        self._left.set()
        await self._asking
        return self._status

    async def _receive(self) -> MutableMapping[str, Any]:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        self._status = message.get("status", self._status)


@asynccontextmanager
async def preparing_held(app: Any) -> AsyncIterator[anyio.CapacityLimiter]:
    """Lets nothing be prepared inside."""
    limiter: anyio.CapacityLimiter = app.state.preparing
    others = [object() for _ in range(int(limiter.total_tokens))]
    for other in others:
        limiter.acquire_on_behalf_of_nowait(other)
    yield limiter
    for other in others:
        limiter.release_on_behalf_of(other)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


@pytest.mark.parametrize("stream", [False, True])
def test_places_of_clients_that_went_away_are_free_before_anything_is_prepared(
    start: Start, ask: Callable[..., Body], stream: bool
) -> None:
    engine = start()
    app = app_of(engine)

    async def scenario() -> None:
        async with client_of(app) as client:
            async with preparing_held(app) as limiter:
                callers = [Caller(app, ask(stream=stream)) for _ in range(PLACES)]
                await until(lambda: limiter.statistics().tasks_waiting == PLACES)
                assert (await client.post(CHAT, json=ask())).status_code == 429
                assert [await caller.leave() for caller in callers] == [499] * PLACES
                with engine.reserve(), engine.reserve(), engine.reserve():
                    pass
            assert (await client.post(CHAT, json=ask(max_tokens=4))).status_code == 200

    asyncio.run(scenario())
    assert (engine.counters.admitted, engine.counters.cancelled) == (1, 0)


def test_client_that_goes_away_while_its_image_is_decoded_is_not_queued(
    start: Start, ask: Callable[..., Body], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start()
    app = app_of(engine)
    reached, go_on = threading.Event(), threading.Event()
    prepare = Serving.prepare

    def held(serving: Serving, messages: Any) -> Any:
        reached.set()
        assert go_on.wait(SECONDS)
        return prepare(serving, messages)

    async def scenario() -> None:
        monkeypatch.setattr(Serving, "prepare", held)
        caller = Caller(app, ask())
        await until(reached.is_set)
        leaving = asyncio.ensure_future(caller.leave())
        # The thread goes on, so its share of the memory is not given to another one yet.
        for _ in range(100):
            await asyncio.sleep(0)
        assert app.state.preparing.borrowed_tokens == 1
        go_on.set()
        assert await leaving == 499
        assert app.state.preparing.borrowed_tokens == 0

    asyncio.run(scenario())
    assert engine.counters.admitted == 0
    with engine.reserve(), engine.reserve(), engine.reserve():
        pass


def test_deadline_ends_those_who_wait_while_another_model_is_loaded(
    start: Start, mdlm: Mdlm, ask: Callable[..., Body]
) -> None:
    engine = start(deadline=0.05)
    new = Serving(mdlm, "new@sha256:000000000000", 0)
    loading, go_on = threading.Event(), threading.Event()

    def load() -> Serving:
        loading.set()
        assert go_on.wait(SECONDS)
        return new

    async def scenario() -> None:
        async with client_of(app_of(engine)) as client:
            sent = [client.post(CHAT, json=ask(stream=stream)) for stream in (False, True)]
            for answer in await asyncio.gather(*sent):
                assert (answer.status_code, answer.json()["error"]["code"]) == (
                    504,
                    "deadline_exceeded",
                )
                assert "waited" in answer.json()["error"]["message"]

    swap = engine.swap(load, restore=lambda: new)
    assert loading.wait(SECONDS)
    try:
        asyncio.run(scenario())
        assert not swap.done()
    finally:
        go_on.set()
    assert swap.result(SECONDS) is new
    assert (engine.waiting, engine.counters.expired, engine.counters.cancelled) == (0, 2, 0)


Sent = Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]


def while_preparing(engine: Engine, sent: Sent, other: Serving) -> httpx.Response:
    """Answers a request during whose preparation another model takes over."""
    app = app_of(engine)

    async def scenario() -> httpx.Response:
        async with client_of(app) as client:
            async with preparing_held(app) as limiter:
                answer = asyncio.ensure_future(sent(client))
                await until(lambda: limiter.statistics().tasks_waiting == 1)
                await asyncio.wrap_future(engine.swap(lambda: other))
            return await answer

    return asyncio.run(scenario())


def test_checkpoint_that_takes_over_meanwhile_answers(
    start: Start, mdlm: Mdlm, ask: Callable[..., Body]
) -> None:
    new = Serving(mdlm, "new@sha256:000000000000", 0)
    body = ask(max_tokens=4)
    answer = while_preparing(start(), lambda client: client.post(CHAT, json=body), new)
    assert answer.json()["system_fingerprint"] == new.checkpoint


def test_model_that_is_replaced_meanwhile_is_not_found(
    start: Start, serving: Serving, mdlm: Mdlm, ask: Callable[..., Body]
) -> None:
    new = Serving(mdlm, "new@sha256:000000000000", 0)
    body = ask(max_tokens=4, model=serving.checkpoint)
    answer = while_preparing(start(), lambda client: client.post(CHAT, json=body), new)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
