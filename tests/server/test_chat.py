"""Answers of the running server, asked by the real `openai` package and by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from purifier import MaskingConfig, answer, checkpoint_id
from purifier.denoise import FAST
from purifier.mdlm.base import Mdlm
from server.config import DEFAULT_EFFORT
from tests.support.service import Body, Service, data_url


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{service.url}/v1", api_key=service.keys["all"], max_retries=0
    ) as client:
        yield client


def messages(picture: Image.Image, text: str = "What is this?") -> list[Any]:
    return [
        {"role": "system", "content": "Answer briefly."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": data_url(picture), "detail": "low"}},
                {"type": "text", "text": text},
            ],
        },
    ]


def test_openai_client_gets_a_defended_answer(
    client: openai.OpenAI, picture: Image.Image, tiny_checkpoint: Path
) -> None:
    completion = client.chat.completions.create(
        model="default",
        messages=messages(picture),
        max_tokens=8,
        extra_body={"defense": {"return_saliency": True, "ratio": 0.25, "threshold": 0.0}},
    )
    assert completion.model_extra is not None
    defense = completion.model_extra["defense"]
    assert completion.choices[0].message.role == "assistant"
    assert completion.system_fingerprint == checkpoint_id(tiny_checkpoint)
    assert defense["applied"] is True
    assert defense["checkpoint"] == completion.system_fingerprint
    default = MaskingConfig().adjusted(effort=DEFAULT_EFFORT)
    assert (defense["level"], defense["ranker"]) == (default.level, default.ranker)
    assert defense["masked"] == pytest.approx(0.25 * defense["total"], abs=1)
    assert {"prepare", "queue", "encode", "saliency", "mask", "denoise", "total"} <= set(
        defense["timings"]
    )
    (plane,) = defense["saliency"]
    for values in (plane["saliency"], plane["masked"]):
        assert len(values) == plane["rows"]
        assert {len(row) for row in values} == {plane["columns"]}
    assert any(cell > 0 for row in plane["masked"] for cell in row)


def test_openai_client_gets_an_undefended_answer(
    client: openai.OpenAI, picture: Image.Image
) -> None:
    completion = client.chat.completions.create(
        model="default",
        messages=messages(picture),
        max_completion_tokens=8,
        extra_body={"defense": {"enabled": False}},
    )
    assert completion.model_extra is not None
    defense = completion.model_extra["defense"]
    assert (defense["applied"], defense["reason"], defense["masked"]) == (False, "disabled", 0)
    assert defense["saliency"] is None


@pytest.mark.parametrize(
    "masking",
    [None, MaskingConfig(), MaskingConfig().adjusted(level="token")],
    ids=["undefended", "default", "token"],
)
def test_answer_is_the_librarys(
    client: openai.OpenAI, picture: Image.Image, mdlm: Mdlm, masking: MaskingConfig | None
) -> None:
    defense = {"enabled": False} if masking is None else {"level": masking.level}
    completion = client.chat.completions.create(
        model="default",
        messages=messages(picture)[1:],
        extra_body={"defense": defense, "gen_length": 16, "block_length": 8, "steps": 8},
    )
    expected = answer(
        mdlm,
        picture,
        "What is this?",
        generation=FAST.adjusted(gen_length=16, block_length=8, steps=8),
        masking=masking,
    )
    assert completion.choices[0].message.content == expected.text
    assert completion.choices[0].finish_reason == expected.finish_reason
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == expected.prompt_tokens
    assert completion.usage.completion_tokens == len(expected.token_ids)
    assert completion.usage.model_extra is not None
    assert completion.usage.model_extra["visual_tokens"] == expected.n_visual_tokens
    assert completion.usage.model_extra["steps"] == expected.steps


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"ranker": "occlusion"}, ("patch", "occlusion")),
        ({"level": "token"}, ("token", MaskingConfig().adjusted(level="token").ranker)),
        ({"ranker": "attention", "threshold": 0.0}, ("patch", "attention")),
        ({"effort": "balanced"}, ("patch", "group-testing")),
        ({"effort": "thorough", "level": "token"}, ("token", "group-testing")),
    ],
    ids=["occlusion", "token", "attention", "balanced", "thorough"],
)
def test_ranker_and_level_are_the_ones_asked_for(
    service: Service, ask: Callable[..., Body], sent: Body, expected: tuple[str, str]
) -> None:
    with service.client() as client:
        body = ask(max_tokens=4, defense=sent)
        answered = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    defense = answered["defense"]
    assert (defense["level"], defense["ranker"]) == expected
    assert defense["threshold"] == MaskingConfig().adjusted(**sent).threshold


def test_the_threshold_leaves_alone_what_does_not_reach_it(
    service: Service, ask: Callable[..., Body]
) -> None:
    def masked(threshold: float) -> Body:
        setting = {"ranker": "occlusion", "ratio": 0.5, "threshold": threshold}
        with service.client() as client:
            body = ask(max_tokens=4, defense=setting)
            answered = client.post("/v1/chat/completions", json=body).raise_for_status().json()
        defense: Body = answered["defense"]
        assert defense["applied"] is True
        assert defense["threshold"] == threshold
        return defense

    everything, nothing = masked(0.0), masked(1000.0)
    assert everything["masked"] == everything["total"] // 2
    assert nothing["masked"] == 0
    assert (everything["verdict"], nothing["verdict"]) == ("masked", "nothing found")
    assert everything["score"] == pytest.approx(nothing["score"])


def test_openai_client_lists_models(client: openai.OpenAI, tiny_checkpoint: Path) -> None:
    identity = checkpoint_id(tiny_checkpoint)
    cards = client.models.list().data
    assert {card.id for card in cards} == {"default", identity}
    assert client.models.retrieve(identity).model_extra == {"root": identity, "parent": None}
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("another")
    assert caught.value.code == "model_not_found"


def test_openai_client_reads_errors(client: openai.OpenAI, picture: Image.Image) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.chat.completions.create(
            model="default",
            messages=messages(picture),
            extra_body={"defense": {"ratoi": 0.3}},
        )
    assert caught.value.param == "defense.ratoi"
    assert caught.value.code == "invalid_request"
    assert caught.value.request_id


def test_without_image_the_defence_is_not_applied(service: Service) -> None:
    body = {
        "messages": [{"role": "user", "content": "Hello?"}],
        "max_tokens": 4,
        "defense": {"enabled": True},
    }
    with service.client("infer") as client:
        answered = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    assert answered["defense"]["applied"] is False
    assert answered["defense"]["reason"] == "no_image"
    assert answered["usage"]["visual_tokens"] == 0


def test_several_images_have_a_map_each(service: Service, picture: Image.Image) -> None:
    other = picture.rotate(90, expand=True)
    content = [
        {"type": "image_url", "image_url": {"url": data_url(picture, "JPEG")}},
        {"type": "text", "text": "And this one?"},
        {"type": "image_url", "image_url": {"url": data_url(other, "WEBP")}},
    ]
    body = {
        "messages": [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": content},
        ],
        "max_tokens": 4,
        "defense": {"return_saliency": True},
    }
    with service.client() as client:
        answered = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    assert len(answered["defense"]["saliency"]) == 2


def test_unknown_fields_are_named_and_ignored(service: Service, ask: Callable[..., Body]) -> None:
    with service.client() as client:
        sent = ask(max_tokens=4, top_p=0.9, user="me")
        answered = client.post("/v1/chat/completions", json=sent).raise_for_status().json()
    assert len(answered["warnings"]) == 2
    assert "'top_p'" in answered["warnings"][0]
    assert "'user'" in answered["warnings"][1]


def test_seeded_answers_repeat_and_seeds_differ(service: Service, ask: Callable[..., Body]) -> None:
    def text(seed: int) -> str:
        with service.client() as client:
            sent = ask(max_tokens=16, temperature=1.0, remasking="random", seed=seed)
            answered = client.post("/v1/chat/completions", json=sent).raise_for_status().json()
        return str(answered["choices"][0]["message"]["content"])

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_request_id_is_echoed_or_made(service: Service) -> None:
    with service.client() as client:
        assert client.get("/health", headers={"x-request-id": "mine-1"}).headers[
            "x-request-id"
        ] == ("mine-1")
        made = client.get("/health", headers={"x-request-id": "not valid\t!"}).headers
        assert len(made["x-request-id"]) == 32


def test_health_says_ready_without_a_key(service: Service) -> None:
    with service.client(None) as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/health/ready").json() == {"status": "ready"}


def test_an_answer_that_the_image_forces_as_a_whole_is_suspicious(
    client: openai.OpenAI, picture: Image.Image
) -> None:
    """Nothing reaches the threshold, so nothing is masked: the verdict is all that says so."""
    verdicts = {}
    for gate in (1e-6, 1000.0):
        completion = client.chat.completions.create(
            model="default",
            messages=messages(picture),
            max_tokens=8,
            extra_body={"defense": {"threshold": 1000.0, "gate": gate}},
        )
        assert completion.model_extra is not None
        assert completion.model_extra["defense"]["masked"] == 0
        verdicts[gate] = completion.model_extra["defense"]["verdict"]
    assert verdicts == {1e-6: "suspicious", 1000.0: "nothing found"}
