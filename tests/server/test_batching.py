"""Many clients at once, against a real server: shared steps, bounded queue, freed slots."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from purifier import MaskingConfig, answer
from purifier.denoise import FAST
from purifier.mdlm.base import Mdlm
from server.security.keys import SCOPES, create_key
from tests.support.service import Body, Service, start_server, stop_server

CHAT = "/v1/chat/completions"
BATCH, QUEUE = 8, 4
LONG = 1800


@pytest.fixture(scope="module")
def busy(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    key = create_key(file, "all", SCOPES)[0]
    limits = ["--max-batch", str(BATCH), "--queue-size", str(QUEUE), "--no-worker"]
    process, url = start_server(
        ["--model", str(tiny_checkpoint), "--keys-file", str(file), *limits]
    )
    yield Service(url, {"all": key}, process)
    stop_server(process)


def client(service: Service) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {service.keys['all']}"}
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(
        base_url=service.url, headers=headers, timeout=120, trust_env=False, limits=limits
    )


async def until(service: Service, **expected: int) -> dict[str, Any]:
    """Waits until the server's counters are as expected."""
    async with asyncio.timeout(60):
        while True:
            status = await asyncio.to_thread(service.status)
            if all(status[name] == value for name, value in expected.items()):
                return status


def test_eight_clients_share_steps_and_get_their_own_answers(
    busy: Service, mdlm: Mdlm, picture: Image.Image, ask: Callable[..., Body]
) -> None:
    masking = MaskingConfig()
    settings = [
        {"gen_length": 96, "block_length": 48, "temperature": 0.5 * (number % 2), "seed": number}
        for number in range(BATCH)
    ]
    questions = [f"What is this, for the {number}th time?" for number in range(BATCH)]
    defended = [number % 3 == 0 for number in range(BATCH)]

    async def scenario() -> list[httpx.Response]:
        async with client(busy) as http:
            # The first QUEUE of them are inside before the others come.
            bodies = [
                ask(question, defense={"enabled": on}, **own)
                for question, on, own in zip(questions, defended, settings, strict=True)
            ]
            first = [asyncio.create_task(http.post(CHAT, json=body)) for body in bodies[:QUEUE]]
            await until(busy, waiting=0, admitted=before["admitted"] + QUEUE)
            rest = [asyncio.create_task(http.post(CHAT, json=body)) for body in bodies[QUEUE:]]
            return await asyncio.gather(*first, *rest)

    before = busy.status()
    responses = asyncio.run(scenario())
    after = busy.status()
    for response, question, own, on in zip(responses, questions, settings, defended, strict=True):
        assert response.status_code == 200, response.text
        expected = answer(
            mdlm,
            picture,
            question,
            generation=FAST.adjusted(**own),
            masking=masking if on else None,
        )
        told = response.json()
        assert told["choices"][0]["message"]["content"] == expected.text
        assert told["usage"]["steps"] == expected.steps
        timings = told["defense"]["timings"]
        parts = sum(value for part, value in timings.items() if part != "total")
        assert 0 < parts <= timings["total"] * 1.01
    assert after["completed"] - before["completed"] == BATCH
    assert after["largest_batch"] > BATCH // 2
    steps = after["steps"] - before["steps"]
    assert after["request_steps"] - before["request_steps"] > 1.5 * steps


def test_identical_questions_share_the_defence(busy: Service, ask: Callable[..., Body]) -> None:
    async def scenario() -> list[httpx.Response]:
        async with client(busy) as http:
            body = ask("The same question?", max_tokens=8)
            return await asyncio.gather(*(http.post(CHAT, json=body) for _ in range(QUEUE)))

    before = busy.status()["shared_defences"]
    responses = asyncio.run(scenario())
    assert len({response.json()["choices"][0]["message"]["content"] for response in responses}) == 1
    assert len({response.json()["defense"]["masked"] for response in responses}) == 1
    assert busy.status()["shared_defences"] - before == QUEUE - 1


def test_too_many_are_refused_and_gone_clients_free_their_slots(
    busy: Service, ask: Callable[..., Body]
) -> None:
    async def scenario() -> None:
        before = await asyncio.to_thread(busy.status)
        body = ask(gen_length=LONG, defense={"enabled": False})
        async with client(busy) as http:
            tasks = []
            for running in range(BATCH):
                tasks.append(asyncio.create_task(http.post(CHAT, json=body)))
                await until(busy, running=running + 1)
            tasks += [asyncio.create_task(http.post(CHAT, json=body)) for _ in range(QUEUE)]
            await until(busy, running=BATCH, waiting=QUEUE)
            refused = await asyncio.gather(*(http.post(CHAT, json=body) for _ in range(BATCH)))
            assert {response.status_code for response in refused} == {429}
            assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
            tasks.pop(0).cancel()
            await until(busy, running=BATCH, waiting=QUEUE - 1)
            tasks.append(asyncio.create_task(http.post(CHAT, json=ask(max_tokens=4))))
            await until(busy, waiting=QUEUE)
            *gone, last = tasks
            for task in gone:
                task.cancel()
            assert (await last).status_code == 200
            await asyncio.gather(*gone, return_exceptions=True)
            after = await until(busy, running=0, waiting=0)
        assert after["cancelled"] - before["cancelled"] == BATCH + QUEUE
        assert after["completed"] - before["completed"] == 1
        assert after["failed"] == before["failed"]
        assert after["refused"] - before["refused"] == BATCH

    asyncio.run(scenario())
