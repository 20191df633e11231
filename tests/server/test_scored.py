"""No request field makes the defence score less of an answer than the server's own settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from purifier import MaskingConfig
from purifier.defense.first_step import scored_positions
from purifier.denoise.config import FAST
from server.answering import check_cost, check_scope, generation_of, masking_of, scored_in_full
from server.config import ServerConfig
from server.errors import ScopeMissing
from server.schemas import ChatMessage, ChatRequest, DefenseRequest, TextPart
from server.schemas.openai_fields import OpenAiFields
from server.security.keys import SCOPES, Principal
from tests.support.service import Body, Service

CHAT = "/v1/chat/completions"
LEAST = Principal("key-0", "application", frozenset({"infer"}))
EVERYTHING = Principal("key-1", "operator", frozenset(SCOPES))

LENGTHS = ("max_tokens", "max_completion_tokens", "gen_length")
FIELDS: dict[str, list[Any]] = {
    **{name: [1, 4, 31, 32, 33, 128, 4096] for name in LENGTHS},
    "block_length": [1, 2, 8, 16, 32],
    "steps": [1, 4, 32, 64],
    "temperature": [0.0, 1.0, 10.0],
    "guidance_scale": [0.0],  # above: see below
    "remasking": ["low_confidence", "margin", "entropy", "random"],
    "cache": ["none", "prefix", "dual", "dllm"],
    "prompt_interval": [1, 4096],
    "response_interval": [1, 4096],
    "transfer_ratio": [0.0, 1.0],
    "parallel_threshold": [0.0, 0.5, 1.0],
    "stop": ["a", ["a", "b"]],
    "seed": [0, 17],
    "stream": [True, False],
    "n": [1],
    "model": ["default"],
}
ELSEWHERE = {
    "messages": "what is asked",
    "stream_options": "what a stream tells besides the text",
    "defense": "bound to the scope, field by field: test_access.py",
}
CASES = [(name, value) for name, values in FIELDS.items() for value in values]


def asking(**fields: Any) -> ChatRequest:
    turn = ChatMessage(role="user", content=[TextPart(text="What?")])
    return ChatRequest.model_validate({"messages": [turn], **fields})


def scored(request: ChatRequest, principal: Principal, config: ServerConfig) -> int:
    """Positions that are scored of the answer to a request, as the route finds them."""
    check_scope(request, principal, config)
    generation = generation_of(request, config.generation)
    masking = masking_of(request, config.masking)
    masking = scored_in_full(masking, generation, principal, config)
    check_cost(generation, masking, config)
    assert masking is not None
    return scored_positions(generation, masking.scored_length)


def test_every_request_field_is_tried() -> None:
    """Fields of OpenAI's that ask for something this server does not do are refused."""
    assert set(FIELDS) | set(ELSEWHERE) | set(OpenAiFields.model_fields) == set(
        ChatRequest.model_fields
    )


@pytest.mark.parametrize(("name", "value"), CASES)
def test_no_field_scores_less_than_the_servers_setting(name: str, value: Any) -> None:
    config = ServerConfig()
    request = asking(**{name: value})
    length = generation_of(request, config.generation).gen_length
    own = config.generation.adjusted(gen_length=length)
    assert scored(request, LEAST, config) >= own.block == length


@pytest.mark.parametrize("length", [1, 12, 32, 64, 4096])
def test_the_length_of_blocks_does_not_count(length: int) -> None:
    config = ServerConfig()
    for block in (1, 2, 4, 12, 32):
        if length % block == 0:
            assert scored(asking(max_tokens=length, block_length=block), LEAST, config) == length


def test_the_operators_own_blocks_are_what_is_scored_at_least() -> None:
    config = ServerConfig(generation=FAST.adjusted(gen_length=96, block_length=48))
    assert scored(asking(), LEAST, config) == 48
    assert scored(asking(block_length=4), LEAST, config) == 48
    assert scored(asking(block_length=96), LEAST, config) == 96
    assert scored(asking(max_tokens=24, block_length=1), LEAST, config) == 24


def test_with_the_scope_the_request_decides() -> None:
    config = ServerConfig()
    assert scored(asking(block_length=4), EVERYTHING, config) == MaskingConfig().scored_length
    assert scored(asking(max_tokens=64, block_length=4), EVERYTHING, config) == 32
    fewer = asking(block_length=4, defense=DefenseRequest(scored_length=1))
    assert scored(fewer, EVERYTHING, config) == 4
    with pytest.raises(ScopeMissing) as caught:
        scored(fewer, LEAST, config)
    assert caught.value.param == "defense.scored_length"


def test_guidance_that_amplifies_what_is_left_needs_the_scope() -> None:
    config = ServerConfig()
    with pytest.raises(ScopeMissing) as caught:
        check_scope(asking(guidance_scale=0.5), LEAST, config)
    assert caught.value.param == "guidance_scale"
    check_scope(asking(guidance_scale=0.5), EVERYTHING, config)
    guided = ServerConfig(generation=FAST.adjusted(guidance_scale=1.0))
    check_scope(asking(guidance_scale=1.0), LEAST, guided)
    check_scope(asking(guidance_scale=0.5), LEAST, guided)
    with pytest.raises(ScopeMissing):
        check_scope(asking(guidance_scale=1.5), LEAST, guided)


@pytest.mark.parametrize("block_length", [1, 8])
def test_blocks_leave_the_mask_as_it_is(
    service: Service, ask: Callable[..., Body], block_length: int
) -> None:
    defense = {"return_saliency": True, "threshold": 0.0}
    answers = []
    with service.client("infer") as client:
        for fields in ({}, {"block_length": block_length}):
            body = ask(max_tokens=16, defense=defense, **fields)
            answers.append(client.post(CHAT, json=body).raise_for_status().json()["defense"])
    whole, blocks = answers
    assert blocks["scored_length"] >= 16
    assert blocks["masked"] == whole["masked"] > 0
    (expected,), (found,) = whole["saliency"], blocks["saliency"]
    assert found["masked"] == expected["masked"]
    for row, wanted in zip(found["saliency"], expected["saliency"], strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-6)
