"""Requests as OpenAI's clients send them: answered as OpenAI would, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import httpx
import openai
import pytest
from PIL import Image

from tests.support.service import Body, Service, data_url

CHAT = "/v1/chat/completions"
TEXT = {"type": "text", "text": "What is this?"}


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{service.url}/v1", api_key=service.keys["infer"], max_retries=0
    ) as client:
        yield client


def user(content: Any = "Hello?") -> Body:
    return {"role": "user", "content": content}


def image(url: str) -> Body:
    return {"type": "image_url", "image_url": {"url": url}}


def ask(client: openai.OpenAI, *turns: Any, **fields: Any) -> Any:
    """What the openai package makes of the answer; fields of its own go as they are."""
    fields = {"max_tokens": 4} | fields
    own = {name: fields.pop(name) for name in list(fields) if name.startswith("x_")}
    extra = {name.removeprefix("x_"): value for name, value in own.items()}
    return client.chat.completions.create(
        model="default", messages=[*turns] or cast(Any, [user()]), extra_body=extra, **fields
    )


def refused(client: openai.OpenAI, *turns: Any, **fields: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, *turns, **fields)
    assert caught.value.response.headers["x-should-retry"] == "false"
    return caught.value


def test_an_empty_assistant_turn_is_part_of_the_history(client: openai.OpenAI) -> None:
    history = [user("Say nothing."), {"role": "assistant", "content": ""}, user()]
    parts = [history[0], {"role": "assistant", "content": [{"type": "text", "text": ""}]}, user()]
    empty, again, blank = (ask(client, *turns).usage for turns in (history, parts, [user()] * 1))
    assert empty.prompt_tokens == again.prompt_tokens > blank.prompt_tokens


def test_what_an_empty_answer_of_this_server_becomes_can_be_sent_back(
    client: openai.OpenAI,
) -> None:
    first = ask(client)
    answered = first.choices[0].message.model_copy(update={"content": ""})
    assert ask(client, user(), answered, user()).choices[0].message.content is not None


@pytest.mark.parametrize("turn", ["system", "user"])
def test_other_turns_without_text_are_refused(client: openai.OpenAI, turn: str) -> None:
    error = refused(client, {"role": turn, "content": ""}, user())
    assert (error.status_code, error.code) == (422, "invalid_prompt")
    assert error.param == "messages[0].content"


def test_an_image_in_an_earlier_user_turn_is_seen_and_defended(
    client: openai.OpenAI, picture: Image.Image
) -> None:
    earlier = user([image(data_url(picture)), TEXT])
    answer = ask(client, earlier, {"role": "assistant", "content": "A picture."}, user())
    assert answer.usage.model_extra["visual_tokens"] > 0
    assert answer.model_extra["defense"]["applied"] is True


@pytest.mark.parametrize("role", ["system", "developer", "assistant"])
def test_images_of_other_roles_are_refused(
    client: openai.OpenAI, picture: Image.Image, role: str
) -> None:
    turn = {"role": role, "content": [TEXT, image(data_url(picture))]}
    error = refused(client, user(), turn, user())
    assert (error.status_code, error.code) == (422, "invalid_prompt")
    assert error.param == "messages[1].content"
    assert "user messages" in error.message


@pytest.mark.parametrize("content", [None, 3, {"type": "text", "text": "Hello?"}, True])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_content_is_a_text_or_parts(client: openai.OpenAI, role: str, content: Any) -> None:
    error = refused(client, user(), {"role": role, "content": content}, user())
    assert (error.status_code, error.code) == (422, "invalid_request")
    assert error.param == "messages[1].content"
    assert "a text or a list of parts" in error.message


def test_what_a_turn_has_besides_its_content_is_named(
    client: openai.OpenAI, picture: Image.Image
) -> None:
    dumped = {"role": "assistant", "content": "Hi.", "refusal": None, "tool_calls": None}
    assert ask(client, user(), dumped, user()).model_extra["warnings"] == []
    named = user([image(data_url(picture)), {**TEXT, "cache_control": {"type": "ephemeral"}}])
    answer = ask(client, {**named, "name": "Ann"})
    warnings = " ".join(answer.model_extra["warnings"])
    assert "messages[0].name" in warnings
    assert "messages[0].content[1].cache_control" in warnings


@pytest.mark.parametrize("stream", [None, False])
def test_stream_options_need_a_stream(client: openai.OpenAI, stream: bool | None) -> None:
    fields = {} if stream is None else {"stream": stream}
    error = refused(client, stream_options={"include_usage": True}, **fields)
    assert (error.status_code, error.param) == (422, "stream_options")
    assert "stream true" in error.message


NO_EFFECT = {
    "response_format": {"type": "text"},
    "logprobs": False,
    "top_logprobs": 0,
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "function_call": "auto",
    "modalities": ["text"],
    "logit_bias": {},
    "n": 1,
    "x_audio": None,
    "x_web_search_options": None,
    "x_structured_outputs": None,
    "x_guided_json": None,
}


@pytest.mark.parametrize("name", NO_EFFECT)
def test_a_value_that_asks_for_nothing_is_taken(client: openai.OpenAI, name: str) -> None:
    assert ask(client, **{name: NO_EFFECT[name]}).model_extra["warnings"] == []
    sent = f"x_{name.removeprefix('x_')}"
    assert ask(client, **{sent: None}).model_extra["warnings"] == []


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CANNOT = {
    "json-object": {"response_format": {"type": "json_object"}},
    "json-schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "object"}},
        }
    },
    "unknown-format": {"response_format": {"type": "poem"}},
    "format-is-text": {"response_format": "json"},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"top_logprobs": 5},
    "tools": {"tools": [TOOL]},
    "tool_choice": {"tool_choice": "required"},
    "named-tool": {"tool_choice": {"type": "function", "function": {"name": "f"}}},
    "functions": {"functions": [{"name": "f"}]},
    "function_call": {"function_call": {"name": "f"}},
    "modalities": {"modalities": ["text", "audio"]},
    "audio": {"x_audio": {"voice": "alloy", "format": "wav"}},
    "web-search": {"x_web_search_options": {}},
    "logit_bias": {"logit_bias": {"50256": -100}},
    "guided_json": {"x_guided_json": {"type": "object"}},
    "guided_regex": {"x_guided_regex": "[0-9]+"},
    "guided_choice": {"x_guided_choice": ["yes", "no"]},
    "guided_grammar": {"x_guided_grammar": "root ::= x"},
    "structured_outputs": {"x_structured_outputs": {"choice": ["yes"]}},
    "two-answers": {"n": 2},
    "no-answers": {"n": 0},
}


@pytest.mark.parametrize("fields", CANNOT.values(), ids=CANNOT.keys())
def test_what_this_server_cannot_do_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any]
) -> None:
    (name,) = fields
    name = name.removeprefix("x_")
    error = refused(client, **fields)
    assert (error.status_code, error.code, error.param) == (422, "invalid_request", name)
    assert "leave it out" in error.message or "leave n out" in error.message


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "x_gen_length"])
@pytest.mark.parametrize("value", [0, -1, 4097])
def test_a_length_out_of_range_is_refused_under_its_own_name(
    client: openai.OpenAI, name: str, value: int
) -> None:
    other = {} if name == "max_tokens" else {"max_tokens": openai.omit}
    error = refused(client, **{**other, name: value})
    sent = name.removeprefix("x_")
    assert (error.status_code, error.code, error.param) == (422, "invalid_setting", sent)
    assert f" - {sent} must be between" in error.message


def test_both_names_of_the_length_may_say_the_same(client: openai.OpenAI) -> None:
    same = ask(client, max_tokens=4, max_completion_tokens=4)
    assert same.usage.completion_tokens <= 4
    error = refused(client, max_tokens=4, max_completion_tokens=5)
    assert (error.status_code, error.code) == (422, "invalid_setting")


def test_settings_of_sampling_that_have_no_effect_are_named(client: openai.OpenAI) -> None:
    answer = ask(client, frequency_penalty=0.5, presence_penalty=0.5, top_p=0.9, store=False)
    warnings = answer.model_extra["warnings"]
    assert len(warnings) == 4
    assert all("ignored" in warning for warning in warnings)


TEXTS_THAT_ARE_NOT_UNICODE = {
    "question": '{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "field": '{"messages": [{"role": "user", "content": "Hello?"}], "\\ud800": 1, "max_tokens": 4}',
    "field of a turn": '{"messages": [{"role": "user", "content": "Hello?", "\\ud800": 1}]}',
    "field of the defence": (
        '{"messages": [{"role": "user", "content": "Hello?"}], "defense": {"\\ud800": 1}}'
    ),
    "value": '{"messages": [{"role": "user", "content": "Hello?"}], "x": "\\udfff"}',
    "stop": '{"messages": [{"role": "user", "content": "Hello?"}], "stop": ["\\ud800"]}',
    "model": '{"messages": [{"role": "user", "content": "Hello?"}], "model": "\\ud800"}',
}


@pytest.mark.parametrize(
    "text", TEXTS_THAT_ARE_NOT_UNICODE.values(), ids=TEXTS_THAT_ARE_NOT_UNICODE.keys()
)
def test_half_a_character_is_refused(service: Service, text: str) -> None:
    headers = {"content-type": "application/json"}
    with service.client() as client:
        response = client.post(CHAT, content=text, headers=headers)
    assert response.status_code in (400, 422), response.text
    assert response.json()["error"]["code"] in ("invalid_request", "invalid_body")


LONG = "x" * 100_000
REPEATED = {
    "unknown setting": {"defense": {LONG: 1}},
    "remasking": {"remasking": LONG},
    "format": {"response_format": {"type": LONG}},
    "role": {"messages": [{"role": LONG, "content": "Hello?"}]},
    "type of a part": {"messages": [{"role": "user", "content": [{"type": LONG}]}]},
    "model": {"model": LONG},
    "number": {"max_tokens": LONG},
}


@pytest.mark.parametrize("fields", REPEATED.values(), ids=REPEATED.keys())
def test_an_error_is_short_whatever_was_sent(service: Service, fields: Body) -> None:
    with service.client() as client:
        response = client.post(CHAT, json={"messages": [user()]} | fields)
    assert response.status_code in (404, 422)
    assert len(response.content) < 1_500
    assert response.json()["error"]["param"]


def test_names_in_warnings_are_short(service: Service) -> None:
    body = {"messages": [{**user(), LONG: 1}], "max_tokens": 4, LONG: 1}
    with service.client() as client:
        response: httpx.Response = client.post(CHAT, json=body)
    assert response.status_code == 200
    assert len(response.content) < 3_000
    assert len(response.json()["warnings"]) == 2


def wrapped(url: str, end: str) -> str:
    header, _, text = url.partition(",")
    lines = [text[start : start + 76] for start in range(0, len(text), 76)]
    return f"{header},{end.join(lines)}{end}"


def url_safe(url: str) -> str:
    header, _, text = url.partition(",")
    return f"{header},{text.replace('+', '-').replace('/', '_')}"


SPELLINGS: dict[str, Callable[[str], str]] = {
    "wrapped": lambda url: wrapped(url, "\n"),
    "wrapped-by-windows": lambda url: wrapped(url, "\r\n"),
    "trailing-newline": lambda url: f"{url}\n",
    "url-safe": lambda url: url_safe(url),
    "unpadded": lambda url: url.rstrip("="),
    "percent-encoded": lambda url: url.replace("+", "%2B").replace("=", "%3D"),
    "surrounded-by-spaces": lambda url: f"  {url}  ",
    "space-in-the-header": lambda url: url.replace(";base64", "; base64"),
    "capitals-in-the-header": lambda url: url.replace("data:image/png", "DATA:image/PNG"),
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_base64_that_leaves_no_doubt_is_the_same_image(
    client: openai.OpenAI, picture: Image.Image, spell: Callable[[str], str]
) -> None:
    # One of these three has padding, and all have characters that the alphabets differ in.
    for height in (40, 41, 42):
        url = data_url(picture.resize((64, height)))
        assert spell(url) != url or "=" not in url
        plain, other = (
            ask(client, user([image(one), TEXT]), x_defense={"return_saliency": True})
            for one in (url, spell(url))
        )
        assert plain.choices[0].message.content == other.choices[0].message.content
        assert plain.model_extra["defense"]["saliency"] == other.model_extra["defense"]["saliency"]


NO_IMAGES = {
    "not-base64": ("data:image/png,AAAA", 400, "image_undecodable", "must be base64"),
    "empty": ("data:,", 415, "unsupported_image", "PNG, JPEG or WebP"),
    "nothing": ("data:", 415, "unsupported_image", "data URLs"),
    "only-base64": ("data:;base64,AAAA", 415, "unsupported_image", "PNG, JPEG or WebP"),
    "text": ("data:text/plain;base64,AAAA", 415, "unsupported_image", "PNG, JPEG or WebP"),
    "blank": ("   ", 415, "unsupported_image", "data URLs"),
    "no-bytes": ("data:image/png;base64,", 415, "unsupported_image", "neither PNG"),
    "no-image": ("data:image/png;base64,AAAA", 415, "unsupported_image", "neither PNG"),
    "cut-off": ("data:image/png;base64,AAAAA", 400, "image_undecodable", "cut off"),
    "lost-plus": ("data:image/png;base64,AAA AAAA", 400, "image_undecodable", "space"),
    "mixed": ("data:image/png;base64,A+A-", 400, "image_undecodable", "mixes"),
    "address": ("https://example.org/a.png", 415, "unsupported_image", "data URLs"),
    "path": ("scene.jpg", 415, "unsupported_image", "data URLs"),
}


@pytest.mark.parametrize(("url", "status", "code", "why"), NO_IMAGES.values(), ids=NO_IMAGES.keys())
def test_what_is_no_image_is_refused_with_its_cause(
    client: openai.OpenAI, url: str, status: int, code: str, why: str
) -> None:
    error = refused(client, user([image(url), TEXT]))
    assert (error.status_code, error.code) == (status, code)
    assert error.param == "messages[0].content[0].image_url.url"
    assert why in error.message
