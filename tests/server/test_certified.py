"""Certified answers over HTTP: what the masks agree on, abstention, and who may ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from purifier.answer import user_messages
from purifier.certified.answers import Certified, certified_answer
from purifier.certified.config import CertifyConfig
from purifier.denoise import FAST
from purifier.mdlm.base import Mdlm
from server.certifying import NO_ANSWER
from server.config import ServerConfig
from tests.support.service import Body, Service, data_url

CHAT = "/v1/chat/completions"
PLAIN = Image.new("RGB", (96, 64), (200, 120, 40))
SMALL = {"window": 0.1, "masks": 2, "tries": 1}


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def expected(mdlm: Mdlm, picture: Image.Image, length: int, **certify: Any) -> Certified:
    inputs = mdlm.prepare(user_messages(picture, "What is this?"))
    generation = FAST.adjusted(gen_length=length)
    return certified_answer(mdlm, inputs, generation, CertifyConfig(**certify))


@pytest.mark.parametrize("accepted", [True, False])
def test_the_answer_is_the_librarys(
    http: httpx.Client, ask: Callable[..., Body], mdlm: Mdlm, picture: Image.Image, accepted: bool
) -> None:
    """A mask changes nothing of a plain picture, and much of another for a random model."""
    shown = PLAIN if accepted else picture
    defense = {"method": "certified", "certify": SMALL}
    body = ask(url=data_url(shown), max_tokens=16, defense=defense)
    answer = http.post(CHAT, json=body).raise_for_status().json()
    found = expected(mdlm, shown, 16, **SMALL)
    assert (found.answer is not None) is accepted
    defense, message = answer["defense"], answer["choices"][0]["message"]
    assert (defense["applied"], defense["method"]) == (True, "certified")
    assert defense["certified"] == SMALL | {
        "agreement": found.agreement,
        "answers": found.answers,
    }
    assert (defense["ranker"], defense["masked"], defense["saliency"]) == (None, 0, None)
    assert answer["usage"]["steps"] >= found.answers
    if found.answer is None:
        assert defense["verdict"] == "not certified"
        assert (message["content"], message["refusal"]) == ("", NO_ANSWER)
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == 0
    else:
        assert defense["verdict"] == "certified"
        assert (message["content"], message["refusal"]) == (found.answer.text, None)
        assert answer["choices"][0]["finish_reason"] == found.answer.finish_reason
        assert answer["usage"]["completion_tokens"] == len(found.answer.token_ids)


def test_the_openai_package_reads_a_refusal(
    service: Service, ask: Callable[..., Body], mdlm: Mdlm, picture: Image.Image
) -> None:
    body = ask(max_tokens=16)
    assert expected(mdlm, picture, 16, **SMALL).answer is None
    with openai.OpenAI(
        base_url=f"{service.url}/v1", api_key=service.keys["all"], max_retries=0
    ) as client:
        completion = client.chat.completions.create(
            **body, extra_body={"defense": {"method": "certified", "certify": SMALL}}
        )
    assert completion.choices[0].message.refusal == NO_ANSWER
    assert not completion.choices[0].message.content


def test_without_an_image_there_is_nothing_to_certify(http: httpx.Client) -> None:
    body = {
        "messages": [{"role": "user", "content": "What is a bag?"}],
        "max_tokens": 2,
        "defense": {"method": "certified"},
    }
    answer = http.post(CHAT, json=body).raise_for_status().json()
    assert (answer["defense"]["applied"], answer["defense"]["reason"]) == (False, "no_image")
    assert answer["choices"][0]["message"]["refusal"] is None


def test_switched_off_it_is_an_undefended_answer(
    http: httpx.Client, ask: Callable[..., Body]
) -> None:
    body = ask(max_tokens=2, defense={"method": "certified", "enabled": False})
    answer = http.post(CHAT, json=body).raise_for_status().json()
    assert (answer["defense"]["applied"], answer["defense"]["reason"]) == (False, "disabled")


def test_another_method_needs_the_scope(service: Service, ask: Callable[..., Body]) -> None:
    with service.client("infer") as client:
        refused = client.post(CHAT, json=ask(defense={"method": "certified"}))
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (403, "scope_missing")
    assert error["param"] == "defense.method"


@pytest.mark.parametrize(
    ("fields", "defense", "param"),
    [
        ({}, {"certify": {"window": 0.7}}, "defense.certify.window"),
        ({}, {"certify": {"masks": 1}}, "defense.certify.masks"),
        ({}, {"certify": {"masks": 16}}, "defense.certify.masks"),
        ({}, {"certify": {"tries": -1}}, "defense.certify.tries"),
        ({}, {"ratio": 0.3}, "defense.ratio"),
        ({}, {"effort": "fast"}, "defense.effort"),
        ({}, {"return_saliency": True}, "defense.return_saliency"),
        ({}, {"method": "disp", "certify": SMALL}, "defense.certify"),
        ({"stream": True}, {}, "stream"),
        ({"temperature": 0.5}, {}, "temperature"),
        ({"remasking": "random"}, {}, "remasking"),
    ],
)
def test_what_does_not_fit_is_named(
    http: httpx.Client, ask: Callable[..., Body], fields: Body, defense: Body, param: str
) -> None:
    refused = http.post(CHAT, json=ask(**fields, defense={"method": "certified", **defense}))
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (422, "invalid_setting", param)


def test_the_default_certificate_is_within_the_servers_limit() -> None:
    default = CertifyConfig()
    most = default.masks**2 * (1 + default.tries)
    assert 2 * most <= ServerConfig().max_masked_answers


def test_a_bad_image_is_refused_as_ever(http: httpx.Client, ask: Callable[..., Body]) -> None:
    body = ask(url="data:image/png;base64,AAAA", defense={"method": "certified"})
    refused = http.post(CHAT, json=body)
    assert refused.status_code == 415
    assert refused.json()["error"]["param"].startswith("messages[0].content[0]")
