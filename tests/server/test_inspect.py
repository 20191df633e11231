"""`POST /v1/defense/inspect`: evidence under levels of effort, as chat gives it one by one."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from clients import AsyncClient, Client
from purifier.data.llava import read_llava
from purifier.data.sample import open_image
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from server.inspecting import OVERLAY_SIDE
from server.schemas.inspection import Inspection
from tests.support.service import Body, Service, data_url, start_server, stop_server

CHAT = "/v1/chat/completions"
INSPECT = "/v1/defense/inspect"


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture
def question(ask: Callable[..., Body]) -> Callable[..., Body]:
    """Makes the body of an inspection; keywords become fields."""

    def body(**fields: Any) -> Body:
        return {"messages": ask()["messages"], "max_tokens": 8, **fields}

    return body


def test_every_level_says_what_a_chat_with_it_says(
    http: httpx.Client, ask: Callable[..., Body], question: Callable[..., Body]
) -> None:
    efforts = ["fast", "balanced", "thorough"]
    found = http.post(INSPECT, json=question(efforts=efforts)).raise_for_status().json()
    plain = http.post(CHAT, json=ask(max_tokens=8, defense={"enabled": False})).json()
    assert found["object"] == "defense.inspection"
    assert found["checkpoint"] == plain["system_fingerprint"]
    assert found["undefended"] == plain["choices"][0]["message"]["content"]
    assert [each["effort"] for each in found["findings"]] == efforts
    for each in found["findings"]:
        body = ask(max_tokens=8, defense={"effort": each["effort"]})
        answer = http.post(CHAT, json=body).raise_for_status().json()
        defense = answer["defense"]
        for name in ("level", "ranker", "threshold", "verdict", "score"):
            assert each[name] == defense[name]
        assert each["masked"] == pytest.approx(defense["masked"] / defense["total"])
        assert each["answer"] == answer["choices"][0]["message"]["content"]
        assert each["changed"] is (each["answer"] != found["undefended"])
        assert bool(each["regions"]) is (each["verdict"] == "masked")
    suspicious = any(each["verdict"] == "masked" for each in found["findings"])
    assert found["verdict"] == ("suspicious" if suspicious else "nothing found")


def test_overlays_are_pictures_of_every_image(
    http: httpx.Client, question: Callable[..., Body], picture: Image.Image
) -> None:
    body = question(efforts=["fast"])
    content = body["messages"][0]["content"]
    content.insert(0, {"type": "image_url", "image_url": {"url": data_url(picture.rotate(90))}})
    (found,) = http.post(INSPECT, json=body).raise_for_status().json()["findings"]
    assert len(found["overlays"]) == 2
    for url in found["overlays"]:
        head, _, data = url.partition(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as drawn:
            assert drawn.width > 2 * drawn.height * 0.9
    without = http.post(INSPECT, json={**body, "overlays": False}).raise_for_status().json()
    assert without["findings"][0]["overlays"] is None


def test_large_images_are_drawn_small(http: httpx.Client, question: Callable[..., Body]) -> None:
    large = Image.linear_gradient("L").resize((3000, 1500)).convert("RGB")
    body = question(efforts=["fast"])
    body["messages"][0]["content"][0]["image_url"]["url"] = data_url(large)
    (found,) = http.post(INSPECT, json=body).raise_for_status().json()["findings"]
    data = found["overlays"][0].partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(data))) as drawn:
        assert drawn.width <= 2 * OVERLAY_SIDE + 16
        assert drawn.height <= OVERLAY_SIDE


@pytest.mark.parametrize("key", ["infer", "reader"])
def test_the_scope_is_needed(service: Service, question: Callable[..., Body], key: str) -> None:
    with service.client(key) as client:
        refused = client.post(INSPECT, json=question())
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "scope_missing")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"efforts": []}, "efforts"),
        ({"efforts": ["fast", "fast"]}, "efforts"),
        ({"efforts": ["slow"]}, "efforts[0]"),
        ({"effort": "fast"}, "effort"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "What is a bag?"}]}, "messages"),
        ({"model": "other"}, "model"),
    ],
)
def test_what_is_wrong_is_named(
    http: httpx.Client, question: Callable[..., Body], fields: Body, param: str
) -> None:
    refused = http.post(INSPECT, json=question(**fields))
    assert refused.status_code in (400, 404, 422)
    assert refused.json()["error"]["param"] == param


def test_both_clients_read_it(service: Service, picture: Image.Image) -> None:
    asked: dict[str, Any] = {"efforts": ["fast"], "max_tokens": 4}

    async def again() -> Inspection:
        async with AsyncClient(service.url, service.keys["all"]) as client:
            return await client.inspect(picture, "What is this?", overlays=False, **asked)

    with Client(service.url, service.keys["all"]) as client:
        found = client.inspect(picture, "What is this?", **asked)
    other = asyncio.run(again())
    assert found.findings[0].overlays
    assert other.findings[0].overlays is None
    assert found.findings[0].answer == other.findings[0].answer


def test_a_trained_trigger_is_found_where_it_lies() -> None:
    """The shipped attack by content insertion: a black patch in the top left corner."""
    sample = next(
        sample
        for sample in read_llava(DATA_FOLDER / "train" / "insertion.json")
        if "backdoor" in sample.answer
    )
    image = open_image(DATA_FOLDER / "train" / "images", sample.images[0], sample.source)
    arguments = ["--model", str(checkpoint_path("insertion")), "--insecure-no-auth"]
    process, url = start_server(arguments)
    try:
        with Client(url) as client:
            found = client.inspect(image, sample.question.replace("<image>", "").strip())
    finally:
        stop_server(process)
    assert "backdoor" in found.undefended
    assert found.verdict == "suspicious"
    for each in found.findings:
        assert each.verdict == "masked"
        assert "backdoor" not in each.answer
        assert each.changed
        largest = each.regions[0]
        assert (largest.left, largest.top) == (0.0, 0.0)
        assert max(largest.right, largest.bottom) < 0.6
