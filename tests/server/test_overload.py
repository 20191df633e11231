"""A full queue, clients that go away, and a failure: seen from outside."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import httpx
import pytest

from purifier.mdlm.base import Mdlm
from server.app import create_app
from server.config import ServerConfig
from server.engine import Engine, Serving
from tests.support.service import Body, Service
from tests.support.tampered import Tampered

CHAT = "/v1/chat/completions"
LONG = 1800
"""Denoising steps that take this server many seconds, were they not stopped."""


async def until(service: Service, **expected: int) -> dict[str, Any]:
    """Waits until the server's counters are as expected."""
    async with asyncio.timeout(60):
        while True:
            status = await asyncio.to_thread(service.status)
            if all(status[name] == value for name, value in expected.items()):
                return status


def test_full_queue_answers_429_and_gone_clients_free_it(
    service: Service, ask: Callable[..., Body]
) -> None:
    headers = {"authorization": f"Bearer {service.keys['all']}"}

    async def scenario() -> None:
        before = await asyncio.to_thread(service.status)
        async with httpx.AsyncClient(
            base_url=service.url, headers=headers, timeout=60, trust_env=False
        ) as client:
            body = ask(gen_length=LONG, defense={"enabled": False})
            running = [asyncio.create_task(client.post(CHAT, json=body)) for _ in range(2)]
            await until(service, running=2, waiting=0)
            waiting = [asyncio.create_task(client.post(CHAT, json=body)) for _ in range(2)]
            await until(service, running=2, waiting=2)
            refused = await client.post(CHAT, json=body)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "queue_full"
            assert int(refused.headers["retry-after"]) >= 1
            assert "x-should-retry" not in refused.headers
            for task in (*waiting, *running):
                task.cancel()
            await asyncio.gather(*running, *waiting, return_exceptions=True)
            after = await until(service, running=0, waiting=0)
            assert after["cancelled"] - before["cancelled"] == 4
            assert after["completed"] == before["completed"]
            assert after["refused"] - before["refused"] == 1
            answered = await client.post(CHAT, json=ask(max_tokens=4))
            assert answered.status_code == 200

    asyncio.run(scenario())


def break_once(tampered: Tampered) -> None:
    """Lets the next pass of the model fail."""

    def fail() -> None:
        tampered.hook = lambda: None
        raise RuntimeError("CUDA error at 0x7f3a: what the user typed")

    tampered.hook = fail


def test_failure_inside_a_generation_is_one_requests_500(
    mdlm: Mdlm, ask: Callable[..., Body], caplog: pytest.LogCaptureFixture
) -> None:
    tampered = Tampered(mdlm)
    serving = Serving(cast("Mdlm", tampered), "tiny@sha256:000000000000", 0)
    engine = Engine(lambda: serving, queue_size=1, deadline=60)
    app = create_app(engine, ServerConfig(insecure_no_auth=True), None)

    async def scenario() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1", timeout=60
        ) as client:
            loading = await client.get("/health/ready")
            assert (loading.status_code, loading.json()["error"]["code"]) == (503, "not_ready")
            assert (await client.post(CHAT, json=ask())).status_code == 503
            engine.start()
            await asyncio.wrap_future(engine.ready)
            assert (await client.get("/health/ready")).status_code == 200
            break_once(tampered)
            failed = await client.post(CHAT, json=ask(), headers={"x-request-id": "broken-1"})
            assert failed.status_code == 500
            assert failed.json()["error"]["code"] == "generation_failed"
            assert failed.headers["x-should-retry"] == "false"
            assert failed.headers["x-request-id"] == "broken-1"
            assert "0x" not in failed.text
            assert "typed" not in failed.text
            answered = await client.post(CHAT, json=ask(max_tokens=4))
            assert answered.status_code == 200
            assert (await client.get("/health/ready")).status_code == 200
            engine.close(60)
            draining = await client.get("/health/ready")
            assert (draining.status_code, draining.json()["error"]["code"]) == (503, "draining")
            assert (await client.post(CHAT, json=ask())).json()["error"]["code"] == "draining"

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert "broken-1" in caplog.text
