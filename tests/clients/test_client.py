"""Both clients over a transport that stands in for the network; the real server is in
`test_live.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from PIL import Image

import clients
from clients import InvalidInput, StatusError, UnexpectedResponse
from server.schemas import ChatMessage, ChatRequest, DefenseRequest, ErrorCode, TextPart
from tests.support.wire import Caller, chat_response, decoded, sent

ERRORS = {
    400: clients.BadRequest,
    401: clients.Unauthorized,
    403: clients.Forbidden,
    404: clients.NotFound,
    405: clients.MethodNotAllowed,
    409: clients.Conflict,
    413: clients.TooLarge,
    415: clients.UnsupportedMedia,
    418: clients.StatusError,
    422: clients.Unprocessable,
    429: clients.Overloaded,
    500: clients.ServerError,
    502: clients.ServerError,
    503: clients.NotReady,
    504: clients.DeadlineExceeded,
}


class Recorder:
    """Answers every request alike and keeps the requests."""

    def __init__(self, *responses: httpx.Response) -> None:
        self.responses = list(responses)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]


def answering(**headers: str) -> Recorder:
    return Recorder(httpx.Response(200, json=chat_response(), headers=headers))


def refusing(status: int, code: str = "invalid_request", **headers: str) -> httpx.Response:
    body = {"message": "Do this.", "type": "server_error", "param": "ratio", "code": code}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json={"error": body}, headers=names)


def test_a_question_about_an_image(call: Caller, png: bytes) -> None:
    handler = answering(**{"x-request-id": "req-7"})
    answer = call(handler, "answer", png, "What is it?")
    request = handler.requests[0]
    assert (request.method, request.url.path) == ("POST", "/v1/chat/completions")
    assert request.headers["authorization"] == "Bearer sk-test"
    assert request.headers["user-agent"].startswith("disp-client/")
    image, text = sent(request)["messages"][0]["content"]
    assert image["type"] == "image_url"
    assert decoded(image["image_url"]["url"]) == png
    assert text == {"type": "text", "text": "What is it?"}
    assert answer.text == "a red coat"
    assert answer.request_id == "req-7"
    assert answer.checkpoint == "demo@sha256:0"
    assert answer.saliency == []


def test_several_images_no_image_and_a_system_turn(
    call: Caller, png: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png)
    handler = answering()
    call(handler, "answer", [png, path, Image.new("RGB", (4, 4))], "Compare.", system="Be brief.")
    call(handler, "answer", None, "Hello?")
    first, second = (sent(request)["messages"] for request in handler.requests)
    assert [turn["role"] for turn in first] == ["system", "user"]
    assert [part["type"] for part in first[1]["content"]] == [*["image_url"] * 3, "text"]
    assert [part["type"] for part in second[0]["content"]] == ["text"]


@pytest.mark.parametrize(
    ("defense", "wire"),
    [
        (None, {}),
        (True, {}),
        (False, {"enabled": False}),
        ({"ratio": 0.3}, {"ratio": 0.3}),
        (DefenseRequest(level="token"), {"level": "token"}),
        (
            {"method": "certified", "certify": {"window": 0.1}},
            {"method": "certified", "certify": {"window": 0.1}},
        ),
    ],
)
def test_the_defence_travels_as_given(call: Caller, defense: Any, wire: dict[str, Any]) -> None:
    handler = answering()
    call(handler, "answer", None, "Hello?", defense=defense)
    call(handler, "answer", None, "Hello?", defense=defense, return_saliency=True)
    plain, saliency = (sent(request)["defense"] for request in handler.requests)
    always = {"enabled": True, "method": "disp", "return_saliency": False}
    assert plain == always | wire
    assert saliency == always | wire | {"return_saliency": True}


def test_generation_settings_travel_at_the_top_level_and_only_if_set(call: Caller) -> None:
    handler = answering()
    call(handler, "answer", None, "Hello?", gen_length=16, temperature=0.5, stop="\n", seed=3)
    body = sent(handler.requests[0])
    assert set(body) == {
        "messages",
        "model",
        "defense",
        "gen_length",
        "temperature",
        "stop",
        "seed",
    }
    assert (body["gen_length"], body["temperature"], body["stop"]) == (16, 0.5, ["\n"])


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"defense": {"ration": 0.3}}, "defense.ration"),
        ({"defense": {"level": "pixel"}}, "defense.level"),
        ({"defense": "on"}, "defense"),
        ({"gen_length": "long"}, "gen_length"),
        ({"remasking": "best"}, "remasking"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_of_the_wrong_type_are_not_sent(
    call: Caller, settings: dict[str, Any], field: str
) -> None:
    handler = answering()
    with pytest.raises(InvalidInput, match=f"^{field}"):
        call(handler, "answer", None, "Hello?", **settings)
    assert handler.requests == []


def test_a_dialogue(call: Caller) -> None:
    handler = answering()
    turns = [
        ChatMessage(role="user", content=[TextPart(text="Hello?")]),
        ChatMessage(role="assistant", content=[TextPart(text="Hello.")]),
        ChatMessage(role="user", content=[TextPart(text="Who are you?")]),
    ]
    response = call(handler, "chat", ChatRequest(messages=turns))
    assert response.choices[0].message.content == "a red coat"
    roles = [turn["role"] for turn in sent(handler.requests[0])["messages"]]
    assert roles == ["user", "assistant", "user"]


def test_models_health_and_status(call: Caller) -> None:
    card = {"id": "default", "created": 1, "root": "demo@sha256:0"}
    models = call(Recorder(httpx.Response(200, json={"object": "list", "data": [card]})), "models")
    assert [model.root for model in models] == ["demo@sha256:0"]
    healthy = Recorder(httpx.Response(200, json={"status": "ok"}))
    assert call(healthy, "health").status == "ok"
    assert healthy.requests[0].url.path == "/health"


def test_ready_is_a_question_and_not_an_error(call: Caller) -> None:
    waiting = Recorder(refusing(503, "not_ready", retry_after="30"))
    assert call(waiting, "ready") is False
    assert len(waiting.requests) == 1
    assert call(Recorder(httpx.Response(200, json={"status": "ready"})), "ready") is True
    with pytest.raises(clients.Forbidden):
        call(Recorder(refusing(403)), "ready")


@pytest.mark.parametrize("status", ERRORS)
def test_every_status_has_its_error(call: Caller, status: int) -> None:
    handler = Recorder(refusing(status, x_request_id="req-9", x_should_retry="false"))
    with pytest.raises(StatusError) as caught:
        call(handler, "answer", None, "Hello?")
    error = caught.value
    assert type(error) is ERRORS[status]
    assert (error.message, error.status, error.param) == ("Do this.", status, "ratio")
    assert (error.code, error.type) == ("invalid_request", "server_error")
    assert error.request_id == "req-9"


@pytest.mark.parametrize("code", [*get_args(ErrorCode), "a_code_of_the_future"])
def test_codes_reach_the_caller(call: Caller, code: str) -> None:
    with pytest.raises(StatusError) as caught:
        call(Recorder(refusing(422, code)), "models")
    assert caught.value.code == code


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(call: Caller, status: int) -> None:
    busy = refusing(status, "queue_full", retry_after="0")
    handler = Recorder(busy, busy, httpx.Response(200, json=chat_response()))
    assert call(handler, "answer", None, "Hello?").text == "a red coat"
    assert len(handler.requests) == 3
    assert len({request.content for request in handler.requests}) == 1


def test_retries_end(call: Caller) -> None:
    handler = Recorder(refusing(429, "queue_full", retry_after="0"))
    with pytest.raises(clients.Overloaded) as caught:
        call(handler, "answer", None, "Hello?", options={"max_retries": 3})
    assert caught.value.retry_after == 0.0
    assert len(handler.requests) == 4


def test_a_pause_longer_than_the_caller_waits_is_an_error_at_once(call: Caller) -> None:
    handler = Recorder(refusing(429, "queue_full", retry_after="5"))
    with pytest.raises(clients.Overloaded) as caught:
        call(handler, "models", options={"max_wait": 4.0})
    assert caught.value.retry_after == 5.0
    assert len(handler.requests) == 1


def test_the_server_can_forbid_a_retry(call: Caller) -> None:
    handler = Recorder(refusing(503, "draining", retry_after="0", x_should_retry="false"))
    with pytest.raises(clients.NotReady):
        call(handler, "models")
    assert len(handler.requests) == 1


@pytest.mark.parametrize(
    ("status", "content", "location"),
    [
        (200, "<html>hello</html>", None),
        (200, '{"object": "list"}', None),
        (302, "", "http://elsewhere.test"),
    ],
)
def test_an_answer_of_another_service_is_told_apart(
    call: Caller, status: int, content: str, location: str | None
) -> None:
    headers = {} if location is None else {"location": location}
    handler = Recorder(httpx.Response(status, text=content, headers=headers))
    with pytest.raises(UnexpectedResponse, match="base URL"):
        call(handler, "models")
    assert len(handler.requests) == 1


def test_an_error_of_a_proxy_has_no_code(call: Caller) -> None:
    with pytest.raises(clients.ServerError) as caught:
        call(Recorder(httpx.Response(502, text="<html>bad gateway</html>")), "models")
    assert caught.value.code is None
    assert "502" in caught.value.message


def test_a_client_without_a_key_sends_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISP_API_KEY", raising=False)
    handler = Recorder(httpx.Response(200, json={"status": "ok"}))
    with clients.Client("http://server.test", transport=httpx.MockTransport(handler)) as client:
        client.health()
    assert "authorization" not in handler.requests[0].headers
