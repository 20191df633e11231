"""The step machine on a tiny random model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from purifier import GenerationConfig, InvalidPrompt, MaskingConfig, answer_batch, load_mdlm
from purifier.answer import user_messages
from purifier.denoise import DenoisingState, denoise, denoising_step
from purifier.mdlm.base import Inputs, Mdlm

QUESTIONS = ("What is this?", "Describe the image.", "Is this a bag, or is it something else?")


@pytest.fixture(scope="module")
def mdlm(tiny_checkpoint: Path) -> Mdlm:
    return load_mdlm(tiny_checkpoint)


@pytest.fixture(scope="module")
def requests(mdlm: Mdlm) -> list[Inputs]:
    generator = torch.Generator().manual_seed(3)
    pictures = [
        Image.fromarray(torch.randint(0, 256, (h, w, 3), generator=generator).byte().numpy())
        for w, h in ((64, 64), (90, 40), (33, 70))
    ]
    asked = [mdlm.prepare(user_messages(*pair)) for pair in zip(pictures, QUESTIONS, strict=True)]
    return [*asked, mdlm.prepare(user_messages(None, "What is this?"))]


@pytest.mark.parametrize("remasking", ["low_confidence", "random", "margin", "entropy"])
@pytest.mark.parametrize("block_length", [None, 4])
def test_a_batch_answers_as_each_request_alone(mdlm, requests, remasking, block_length) -> None:
    config = GenerationConfig(gen_length=12, block_length=block_length, remasking=remasking)
    prompts = [mdlm.embed(inputs) for inputs in requests]
    assert len({len(prompt.embeds) for prompt in prompts}) > 1
    together = [state.token_ids for state in denoise(mdlm, prompts, config)]
    alone = [denoise(mdlm, [prompt], config)[0].token_ids for prompt in prompts]
    assert together == alone


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_requests_join_and_leave_between_steps(mdlm, requests, temperature) -> None:
    config = GenerationConfig(gen_length=8, temperature=temperature, seed=5)
    other = GenerationConfig(gen_length=6, block_length=3, guidance_scale=1.0, remasking="margin")
    first, second = (mdlm.embed(inputs) for inputs in requests[:2])
    expected = [
        denoise(mdlm, [first], config)[0].token_ids,
        denoise(mdlm, [second], other)[0].token_ids,
    ]
    early, late = DenoisingState(mdlm, first, config), DenoisingState(mdlm, second, other)
    for _ in range(3):
        denoising_step(mdlm, [early])
    while running := [state for state in (late, early) if not state.done]:
        denoising_step(mdlm, running)
    assert [early.token_ids, late.token_ids] == expected


def test_masked_visual_positions_are_never_filled(mdlm, requests) -> None:
    prompt = mdlm.embed(requests[0])
    embeds = prompt.embeds.clone()
    embeds[prompt.visual] = mdlm.mask_embedding
    masked = type(prompt)(embeds, prompt.visual, prompt.spans)
    state = DenoisingState(mdlm, masked, GenerationConfig(gen_length=8))
    while not state.done:
        denoising_step(mdlm, [state])
        assert torch.equal(state.embeds[: state.prompt_length], embeds)
    assert mdlm.tokens.mask not in state.token_ids
    assert state.steps_run == 8


def test_stop_sequence_cuts_the_answer(mdlm, requests, monkeypatch) -> None:
    prompt = mdlm.embed(requests[0])
    plain = denoise(mdlm, [prompt], GenerationConfig(gen_length=8))[0]
    stop = plain.token_ids[3:4]
    monkeypatch.setattr(mdlm, "encode_stop", {"<stop>": stop}.__getitem__)
    stopped = denoise(mdlm, [prompt], GenerationConfig(gen_length=8, stop=("<stop>",)))[0]
    assert stopped.finish_reason == "stop"
    assert stopped.stop_at is not None
    assert stopped.ids.tolist()[stopped.stop_at] == stop[0]
    assert stop[0] not in stopped.token_ids
    assert mdlm.tokens.mask not in stopped.token_ids
    assert plain.finish_reason == "length"


def test_a_response_that_does_not_fit_is_refused(mdlm, requests) -> None:
    with pytest.raises(InvalidPrompt, match="exceed"):
        answer_batch(mdlm, requests[:1], generation=GenerationConfig(gen_length=4096))


def test_check_ends_the_generation_between_steps(mdlm, requests) -> None:
    class Cancelled(Exception):
        pass

    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Cancelled

    with pytest.raises(Cancelled):
        denoise(mdlm, [mdlm.embed(requests[0])], GenerationConfig(gen_length=8), check=check)
    assert calls == 4


@pytest.mark.parametrize("level", ["token", "patch"])
def test_defended_batch_equals_each_alone(mdlm, requests, level) -> None:
    masking = MaskingConfig(level=level, ratio=0.3)
    generation = GenerationConfig(gen_length=6)
    together = answer_batch(mdlm, requests, generation=generation, masking=masking)
    for inputs, answer in zip(requests, together, strict=True):
        alone = answer_batch(mdlm, [inputs], generation=generation, masking=masking)[0]
        assert answer.token_ids == alone.token_ids
        assert torch.equal(answer.masked, alone.masked)
    assert together[-1].n_units == 0
    assert set(together[0].timings) == {"encode", "saliency", "mask", "denoise"}
