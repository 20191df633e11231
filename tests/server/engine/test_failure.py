"""What fails outside of any request: the engine's own thread, and who watches it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import httpx
import pytest

from purifier import GenerationConfig
from purifier.answer import Answer
from purifier.denoise.noise import SeededNoise
from server.app import create_app
from server.config import ServerConfig
from server.engine import Engine, Room, Serving, Ticket
from server.errors import Draining, GenerationFailed, NotReady
from tests.support.engine import SECONDS, make_job, submit
from tests.support.tampered import Barrier, Tampered

Start = Callable[..., Engine]


def fail(*args: Any) -> Any:
    raise RuntimeError("a fault of the engine's own at 0x7f3a")


async def readiness(engine: Engine) -> int:
    app = create_app(engine, ServerConfig(insecure_no_auth=True), None)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return (await client.get("/health/ready")).status_code


def test_engine_that_falls_ends_what_is_inside_and_says_so(
    start: Start,
    serving: Serving,
    tampered: Tampered,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = start(room=Room(1, 10**6))
    assert asyncio.run(readiness(engine)) == 200
    barrier = Barrier(tampered)
    inside = [submit(engine, make_job(serving)) for _ in range(3)]
    barrier.wait_reached()
    late = engine.reserve()
    swap = engine.swap(lambda: serving, restore=lambda: serving)
    monkeypatch.setattr(engine._batch, "_publish", fail)
    with caplog.at_level(logging.CRITICAL):
        barrier.open()
        futures: list[Future[Any]] = [*(ticket.future for ticket in inside), swap]
        for future in futures:
            with pytest.raises(NotReady) as caught:
                future.result(SECONDS)
            assert "0x" not in caught.value.message
        engine._thread.join(SECONDS)
    assert "0x7f3a" in caplog.text
    assert engine.state == "failed"
    assert (engine.running, engine.waiting, engine.counters.failed) == (0, 0, 3)
    with pytest.raises(NotReady):
        engine.reserve()
    with late, pytest.raises(Draining):
        late.submit(make_job(serving))
    assert asyncio.run(readiness(engine)) == 503
    assert engine.close(SECONDS)
    assert engine.state == "failed"


def test_observer_that_fails_hurts_nobody(
    start: Start, serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Ticket] = []

    class Broken:
        def answered(self, ticket: Ticket, answer: Answer) -> None:
            fail()

    class Sound:
        def answered(self, ticket: Ticket, answer: Answer) -> None:
            heard.append(ticket)

    engine = start()
    engine.watch(Broken())
    engine.watch(Sound())
    with caplog.at_level(logging.ERROR):
        tickets = [submit(engine, make_job(serving)) for _ in range(2)]
        assert [ticket.future.result(SECONDS).steps for ticket in tickets] == [4, 4]
    assert heard == tickets
    assert "0x7f3a" in caplog.text
    assert (engine.state, engine.counters.completed) == ("ready", 2)


@pytest.mark.parametrize("fault", ["kept", "counted"])
def test_what_fails_around_a_step_ends_that_request_alone(
    start: Start, serving: Serving, tampered: Tampered, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    warm = GenerationConfig(gen_length=8, temperature=0.9, seed=4)
    engine = start()
    barrier = Barrier(tampered)
    if fault == "kept":
        monkeypatch.setattr(SeededNoise, "__deepcopy__", fail, raising=False)
    else:
        counted = engine._counting.add_answer
        monkeypatch.setattr(
            engine._counting,
            "add_answer",
            lambda answer: fail() if answer.steps == 8 else counted(answer),
        )
    bad, good = (submit(engine, make_job(serving, generation=g)) for g in (warm, None))
    barrier.wait_reached()
    barrier.open()
    with pytest.raises(GenerationFailed):
        bad.future.result(SECONDS)
    assert good.future.result(SECONDS).steps == 4
    assert (engine.running, engine.counters.completed, engine.counters.failed) == (0, 1, 1)
