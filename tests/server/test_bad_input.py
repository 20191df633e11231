"""Every bad input gets a clear error of one shape, and none reaches the engine."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from PIL import Image

from server.schemas import ErrorEnvelope
from tests.support.service import Body, Service, data_url

CHAT = "/v1/chat/completions"


def refused(service: Service, send: Callable[[httpx.Client], httpx.Response]) -> httpx.Response:
    """Sends a bad request, and checks the error's shape and that the engine saw nothing."""
    before = service.status()["admitted"]
    with service.client() as client:
        response = send(client)
    assert service.status()["admitted"] == before
    error = ErrorEnvelope.model_validate(response.json()).error
    assert error.message.endswith(".") or error.message.endswith("...")
    assert "at 0x" not in error.message
    assert response.headers["x-request-id"]
    assert response.headers["x-should-retry"] == "false"
    return response


def turns(*messages: tuple[str, Any]) -> Body:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def image_part(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


QUESTION = {"type": "text", "text": "What?"}
HELLO = ("user", "Hello?")

BAD_MESSAGES = {
    "no-messages": ({}, 422, "invalid_request", "messages"),
    "empty-messages": ({"messages": []}, 422, "invalid_request", "messages"),
    "empty-question": (turns(("user", "  ")), 422, "invalid_prompt", "messages[0].content"),
    "no-parts": (turns(("user", [])), 422, "invalid_prompt", "messages[0].content"),
    "image-without-question": (
        turns(("user", [image_part("data:image/png;base64,AAAA")])),
        422,
        "invalid_prompt",
        "messages[0].content",
    ),
    "unknown-role": (turns(("oracle", "Hello?")), 422, "invalid_request", "messages[0].role"),
    "assistant-last": (
        turns(HELLO, ("assistant", "Hi.")),
        422,
        "invalid_prompt",
        "messages[1].role",
    ),
    "unknown-part": (
        turns(("user", [{"type": "audio", "audio": "x"}])),
        422,
        "invalid_request",
        "messages[0].content[0]",
    ),
    "placeholder-without-image": (
        turns(("user", "<image>\nWhat is this?")),
        422,
        "image_missing",
        "messages[0].content",
    ),
    "image-part-without-url": (
        turns(("user", [{"type": "image_url", "image_url": {}}, QUESTION])),
        422,
        "invalid_request",
        "messages[0].content[0].image_url.url",
    ),
    "image-part-with-empty-url": (
        turns(("user", [image_part(""), QUESTION])),
        422,
        "invalid_request",
        "messages[0].content[0].image_url.url",
    ),
    "image-in-system-turn": (
        turns(("system", [QUESTION, image_part("data:image/png;base64,AAAA")]), HELLO),
        422,
        "invalid_prompt",
        "messages[0].content",
    ),
    "prompt-longer-than-context": (
        turns(("user", "shirt " * 5000)),
        422,
        "context_length_exceeded",
        "messages",
    ),
    "text-longer-than-any-context": (
        turns(("user", "shirt " * 50_000)),
        422,
        "context_length_exceeded",
        "messages",
    ),
    "unknown-model": ({**turns(HELLO), "model": "gpt"}, 404, "model_not_found", "model"),
    "stream-options-without-a-stream": (
        {**turns(HELLO), "stream_options": {"include_usage": True}},
        422,
        "invalid_request",
        "stream_options",
    ),
    "two-answers": ({**turns(HELLO), "n": 2}, 422, "invalid_request", "n"),
}


@pytest.mark.parametrize(
    ("body", "status", "code", "param"), BAD_MESSAGES.values(), ids=BAD_MESSAGES.keys()
)
def test_bad_messages(service: Service, body: Body, status: int, code: str, param: str) -> None:
    response = refused(service, lambda client: client.post(CHAT, json=body))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)


BAD_SETTINGS = {
    "max_tokens-zero": ({"max_tokens": 0}, "max_tokens"),
    "max_tokens-huge": ({"max_tokens": 10**9}, "max_tokens"),
    "max_tokens-text": ({"max_tokens": "8"}, "max_tokens"),
    "lengths-differ": ({"max_tokens": 8, "gen_length": 16}, "max_tokens"),
    "block-does-not-divide": ({"gen_length": 32, "block_length": 5}, "block_length"),
    "steps-do-not-divide": ({"gen_length": 32, "block_length": 8, "steps": 6}, "steps"),
    "steps-negative": ({"steps": -1}, "steps"),
    "temperature-negative": ({"temperature": -0.1}, "temperature"),
    "temperature-bool": ({"temperature": True}, "temperature"),
    "guidance-huge": ({"guidance_scale": 1e9}, "guidance_scale"),
    "remasking-unknown": ({"remasking": "clever"}, "remasking"),
    "seed-negative": ({"seed": -1}, "seed"),
    "seed-too-long": ({"seed": 2**64}, "seed"),
    "stop-empty": ({"stop": ""}, "stop[0]"),
    "stop-at-masks": ({"stop": ["<|mdm_mask|>"]}, "stop"),
    "stop-at-masks-after-others": ({"stop": ["shirt", "a<|mdm_mask|>"]}, "stop"),
    "stop-many": ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    "defense-unknown-key": ({"defense": {"enable": False}}, "defense.enable"),
    "defense-not-an-object": ({"defense": False}, "defense"),
    "defense-null": ({"defense": None}, "defense"),
    "enabled-text": ({"defense": {"enabled": "false"}}, "defense.enabled"),
    "level-unknown": ({"defense": {"level": "pixel"}}, "defense.level"),
    "ratio-above-one": ({"defense": {"ratio": 1.5}}, "defense.ratio"),
    "ratio-negative": ({"defense": {"ratio": -0.1}}, "defense.ratio"),
    "ranker-unknown": ({"defense": {"ranker": "best"}}, "defense.ranker"),
    "probes-zero": ({"defense": {"probes": 0}}, "defense.probes"),
    "pooling-even": ({"defense": {"pooling": 2}}, "defense.pooling"),
    "threshold-negative": ({"defense": {"threshold": -1.0}}, "defense.threshold"),
    "threshold-huge": ({"defense": {"threshold": 1e6}}, "defense.threshold"),
    "threshold-text": ({"defense": {"threshold": "5"}}, "defense.threshold"),
    "occlusion-of-tokens": (
        {"defense": {"level": "token", "ranker": "occlusion"}},
        "defense.ranker",
    ),
    "top_k-one": ({"defense": {"top_k": 1}}, "defense.top_k"),
    "softening-zero": ({"defense": {"temperature": 0}}, "defense.temperature"),
    "more-probes-than-the-server-takes": ({"defense": {"probes": 65}}, "defense.probes"),
    "saliency-of-gigabytes": (
        {"max_tokens": 1024, "defense": {"top_k": 1000}},
        "defense.top_k",
    ),
    "bad-although-off": ({"defense": {"enabled": False, "ratio": 2.0}}, "defense.ratio"),
}


@pytest.mark.parametrize(("fields", "param"), BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_bad_settings(service: Service, ask: Callable[..., Body], fields: Body, param: str) -> None:
    response = refused(service, lambda client: client.post(CHAT, json=ask(**fields)))
    assert response.status_code == 422
    assert response.json()["error"]["param"] == param


def test_smaller_blocks_make_room_for_a_larger_top_k(
    service: Service, ask: Callable[..., Body]
) -> None:
    defense = {"ranker": "fisher", "top_k": 500}
    large = ask(gen_length=64, defense=defense)
    response = refused(service, lambda client: client.post(CHAT, json=large))
    assert "8,000,000" in response.json()["error"]["message"]
    assert "Lower top_k or block_length" in response.json()["error"]["message"]
    with service.client() as client:
        small = ask(gen_length=64, block_length=32, steps=2, defense=defense)
        assert client.post(CHAT, json=small).status_code == 200


def test_not_a_number_is_out_of_range(service: Service, ask: Callable[..., Body]) -> None:
    text = json.dumps(ask(temperature=float("nan")))
    headers = {"content-type": "application/json"}
    response = refused(service, lambda client: client.post(CHAT, content=text, headers=headers))
    assert response.json()["error"]["param"] == "temperature"


def png_bomb(side: int) -> str:
    """A valid PNG of side x side black pixels, a few kilobytes long."""
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + (side + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    file = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(file).decode()


def noise(kind: str, side: int = 64) -> str:
    pixels = random.Random(0).randbytes(3 * side**2)
    return data_url(Image.frombytes("RGB", (side, side), pixels), kind)


def gif_named(kind: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "GIF")
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


BAD_IMAGES: dict[str, tuple[Callable[[], str], int, str]] = {
    "remote-url": (lambda: "https://example.org/cat.png", 415, "unsupported_image"),
    "local-file": (lambda: "file:///etc/passwd", 415, "unsupported_image"),
    "path": (lambda: "/etc/passwd", 415, "unsupported_image"),
    "not-an-image": (lambda: "data:text/html;base64,AAAA", 415, "unsupported_image"),
    "gif": (lambda: gif_named("gif"), 415, "unsupported_image"),
    "gif-called-png": (lambda: gif_named("png"), 415, "unsupported_image"),
    "not-base64": (lambda: "data:image/png,AAAA", 400, "image_undecodable"),
    "truncated-base64": (lambda: noise("PNG")[:-3], 400, "image_undecodable"),
    "foreign-characters": (lambda: "data:image/png;base64,A*AA", 400, "image_undecodable"),
    "empty": (lambda: "data:image/png;base64,", 415, "unsupported_image"),
    "truncated-png": (lambda: noise("PNG")[:-4000], 400, "image_undecodable"),
    "truncated-jpeg": (lambda: noise("JPEG")[:-400], 400, "image_undecodable"),
    "truncated-webp": (lambda: noise("WEBP")[:-400], 400, "image_undecodable"),
    "png-bomb": (lambda: png_bomb(12_000), 413, "image_too_large"),
    "png-bomb-that-pillow-only-warns-of": (lambda: png_bomb(6_000), 413, "image_too_large"),
    "png-bomb-that-pillow-refuses": (lambda: png_bomb(15_000), 413, "image_too_large"),
    "too-long": (
        lambda: "data:image/png;base64," + "A" * 13_333_340,
        413,
        "image_too_large",
    ),
    "too-small": (lambda: data_url(Image.new("RGB", (64, 3))), 422, "image_dimensions"),
    "one-pixel": (lambda: data_url(Image.new("RGB", (1, 1))), 422, "image_dimensions"),
    "too-elongated": (lambda: data_url(Image.new("RGB", (1000, 9))), 422, "image_dimensions"),
    "side-too-long": (lambda: data_url(Image.new("L", (20_000, 500))), 413, "image_too_large"),
}


@pytest.mark.parametrize(("make", "status", "code"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_bad_images(
    service: Service,
    ask: Callable[..., Body],
    make: Callable[[], str],
    status: int,
    code: str,
) -> None:
    body = ask(url=make())
    response = refused(service, lambda client: client.post(CHAT, json=body))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert error["param"] == "messages[0].content[0].image_url.url"


def test_too_many_images(service: Service, picture: Image.Image) -> None:
    parts = [image_part(data_url(picture))] * 9
    body = turns(("user", [*parts, QUESTION]))
    response = refused(service, lambda client: client.post(CHAT, json=body))
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_many_images")
    assert response.json()["error"]["param"] == "messages[0].content[8].image_url.url"


def test_prompt_and_response_together_are_too_long(
    service: Service, ask: Callable[..., Body]
) -> None:
    response = refused(service, lambda client: client.post(CHAT, json=ask(max_tokens=2040)))
    assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
def test_body_over_the_limit(service: Service, declared: bool) -> None:
    piece = b" " * 1_000_000
    content = piece * 21 if declared else (piece for _ in range(21))
    headers = {"content-type": "application/json"}
    response = refused(service, lambda client: client.post(CHAT, content=content, headers=headers))
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert "20,000,000" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "multipart/form-data; boundary=x", "", "application/jsonp"]
)
def test_wrong_content_type(service: Service, ask: Callable[..., Body], content_type: str) -> None:
    text = json.dumps(ask())
    headers = {"content-type": content_type}
    response = refused(service, lambda client: client.post(CHAT, content=text, headers=headers))
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "text",
    ["{", "", "[" * 100_000, '{"messages": ' + "9" * 5000 + "}", b"\xff\xfe\x00\x01"],
    ids=["truncated", "empty", "nested", "long-number", "not-utf8"],
)
def test_body_is_not_json(service: Service, text: str | bytes) -> None:
    headers = {"content-type": "application/json"}
    response = refused(service, lambda client: client.post(CHAT, content=text, headers=headers))
    assert response.status_code in (400, 422)
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("text", ["[]", '"hello"', "17", "null"])
def test_body_is_not_an_object(service: Service, text: str) -> None:
    headers = {"content-type": "application/json"}
    response = refused(service, lambda client: client.post(CHAT, content=text, headers=headers))
    assert response.status_code == 422


def test_wrong_method(service: Service) -> None:
    response = refused(service, lambda client: client.get(CHAT))
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/", "/v1/nothing", "/redoc", "/docs/other"])
def test_unknown_address(service: Service, path: str) -> None:
    response = refused(service, lambda client: client.get(path))
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
