"""Streamed answers, read by the real `openai` package from the running server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from PIL import Image

from purifier.mdlm.base import Mdlm
from server.app import create_app
from server.config import ServerConfig
from server.engine import Engine, Serving
from tests.support.service import Body, Service, data_url
from tests.support.tampered import Tampered

CHAT = "/v1/chat/completions"
BLOCKS = {"max_tokens": 16, "extra_body": {"block_length": 4}}


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{service.url}/v1", api_key=service.keys["all"], max_retries=0
    ) as client:
        yield client


def messages(picture: Image.Image) -> list[Any]:
    image = {"type": "image_url", "image_url": {"url": data_url(picture)}}
    return [{"role": "user", "content": [image, {"type": "text", "text": "What is this?"}]}]


def contents(chunks: list[ChatCompletionChunk]) -> list[str]:
    return [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]


@pytest.mark.parametrize("block_length", [4, 16])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pieces_make_up_the_answer_that_is_not_streamed(
    client: openai.OpenAI, picture: Image.Image, block_length: int, seed: int
) -> None:
    fields: dict[str, Any] = {
        "model": "default",
        "messages": messages(picture),
        "max_tokens": 16,
        "temperature": 0.7,
        "seed": seed,
        "extra_body": {"block_length": block_length, "defense": {"threshold": 0.0}},
    }
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(stream=True, **fields))
    first, *middle, last = chunks
    assert whole.choices[0].message.content == "".join(contents(chunks))
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert all(chunk.choices[0].finish_reason is None for chunk in (first, *middle))
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(middle) <= 16 // block_length
    assert last.model_extra is not None
    defense = last.model_extra["defense"]
    assert (defense["applied"], defense["checkpoint"]) == (True, whole.system_fingerprint)
    assert defense["masked"] > 0
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_is_the_last_chunk_if_asked_for(client: openai.OpenAI, picture: Image.Image) -> None:
    fields: dict[str, Any] = {"model": "default", "messages": messages(picture), "max_tokens": 4}
    whole = client.chat.completions.create(**fields)
    options: Any = {"include_usage": True}
    *chunks, last = client.chat.completions.create(stream=True, stream_options=options, **fields)
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage == whole.usage


@pytest.mark.parametrize(
    ("question", "fields"),
    [
        ("picture", {}),
        ("picture", {"defense": {"level": "token", "return_saliency": True}}),
        ("picture", {"defense": {"enabled": False}}),
        ("text", {}),
    ],
    ids=["default", "token", "disabled", "no image"],
)
def test_defence_is_told_as_in_the_answer_that_is_not_streamed(
    service: Service, ask: Callable[..., Body], question: str, fields: Body
) -> None:
    text: Body = {"model": "default", "messages": [{"role": "user", "content": "Hello?"}]}
    body = (ask() if question == "picture" else text) | {"max_tokens": 4} | fields
    with service.client() as client:
        whole = client.post(CHAT, json=body).raise_for_status().json()
        streamed = client.post(CHAT, json=body | {"stream": True}).raise_for_status().text
    last = json.loads(streamed.strip().split("\n\n")[-2].removeprefix("data: "))
    timings = [told["defense"].pop("timings") for told in (whole, last)]
    assert last["defense"] == whole["defense"]
    assert last["warnings"] == whole["warnings"]
    assert timings[0].keys() == timings[1].keys()


def test_what_is_wrong_before_the_first_byte_is_an_ordinary_error(service: Service) -> None:
    body = {"messages": [{"role": "user", "content": "Hello?"}], "stream": True, "steps": 0}
    with service.client() as client:
        response = client.post(CHAT, json=body)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "steps"


def test_wire_is_server_sent_events(service: Service, ask: Callable[..., Body]) -> None:
    body = ask(max_tokens=8, block_length=4, stream=True, stream_options={"include_usage": True})
    with service.client() as client:
        response = client.post(CHAT, json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    told = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert all(chunk["usage"] is None for chunk in told[:-1])
    assert told[-1]["usage"]["completion_tokens"] <= 8
    assert told[-2]["choices"][0]["delta"] == {}
    assert "defense" not in told[0]


def test_reader_that_goes_away_frees_its_slot(service: Service, ask: Callable[..., Body]) -> None:
    before = service.status()
    body = ask(gen_length=1800, block_length=900, stream=True, defense={"enabled": False})
    with service.client() as client, client.stream("POST", CHAT, json=body) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        assert service.status()["running"] == 1
    until = time.monotonic() + 60
    while (after := service.status())["running"]:
        assert time.monotonic() < until
    assert after["cancelled"] - before["cancelled"] == 1
    assert after["completed"] == before["completed"]


async def collect(stream: Any, found: list[str | None]) -> None:
    async for chunk in stream:
        found.append(chunk.choices[0].delta.role)


def test_failure_on_the_way_is_an_error_event(mdlm: Mdlm) -> None:
    tampered = Tampered(mdlm)
    serving = Serving(cast("Mdlm", tampered), "tiny@sha256:000000000000", 0)
    engine = Engine(lambda: serving, queue_size=1, deadline=60)
    app = create_app(engine, ServerConfig(insecure_no_auth=True), None)
    passes = 0

    def fail_later() -> None:
        nonlocal passes
        passes += 1
        if passes == 3:
            raise RuntimeError("CUDA error at 0x7f3a")

    async def read() -> list[str | None]:
        transport = httpx.ASGITransport(app=app)
        client = openai.AsyncOpenAI(
            base_url="http://127.0.0.1/v1",
            api_key="-",
            max_retries=0,
            http_client=cast("Any", httpx.AsyncClient(transport=transport)),
        )
        engine.start()
        await asyncio.wrap_future(engine.ready)
        tampered.hook = fail_later
        turns: Any = [{"role": "user", "content": "Hello?"}]
        extra = {"block_length": 1, "cache": "none"}
        found: list[str | None] = []
        async with client:
            stream = await client.chat.completions.create(
                model="default", messages=turns, max_tokens=8, stream=True, extra_body=extra
            )
            with pytest.raises(openai.APIError) as caught:
                await collect(stream, found)
        assert caught.value.code == "generation_failed"
        assert "0x" not in caught.value.message
        return found

    try:
        assert asyncio.run(read())[0] == "assistant"
    finally:
        engine.close(0)
