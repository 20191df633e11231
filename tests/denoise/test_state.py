"""The step machine on a tiny random model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from purifier import (
    GenerationConfig,
    InvalidSetting,
    MaskingConfig,
    PromptTooLong,
    PurifierError,
    answer_batch,
    load_mdlm,
)
from purifier.answer import user_messages
from purifier.defense.config import Level
from purifier.defense.first_step import Response, first_step_batch
from purifier.denoise import DenoisingState, denoise, denoising_step
from purifier.denoise.config import Remasking
from purifier.mdlm.base import Inputs, Mdlm
from tests.support.legible import legible

QUESTIONS = ("What is this?", "Describe the image.", "Is this a bag, or is it something else?")


@pytest.fixture(scope="module")
def mdlm(tiny_checkpoint: Path) -> Mdlm:
    return legible(load_mdlm(tiny_checkpoint))


@pytest.fixture(scope="module")
def requests(mdlm: Mdlm) -> list[Inputs]:
    generator = torch.Generator().manual_seed(3)
    pictures = [
        Image.fromarray(torch.randint(0, 256, (h, w, 3), generator=generator).byte().numpy())
        for w, h in ((64, 64), (90, 40), (33, 70))
    ]
    asked = [mdlm.prepare(user_messages(*pair)) for pair in zip(pictures, QUESTIONS, strict=True)]
    return [*asked, mdlm.prepare(user_messages(None, "What is this?"))]


@pytest.fixture(scope="module")
def stop_word(mdlm: Mdlm, requests: list[Inputs]) -> str:
    """A word that the model says in the middle of an answer."""
    config = GenerationConfig(gen_length=12, stop=())
    return mdlm.decode([denoise(mdlm, [mdlm.embed(requests[0])], config)[0].token_ids[5]])


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        *(
            GenerationConfig(gen_length=12, block_length=block, remasking=remasking)
            for remasking in ("low_confidence", "random", "margin", "entropy")
            for block in (None, 4)
        ),
        GenerationConfig(gen_length=12, block_length=4, steps=6),
        GenerationConfig(gen_length=12, steps=30),
        GenerationConfig(gen_length=12, remasking="entropy", suffix=" background."),
        GenerationConfig(gen_length=8, temperature=0.7, seed=5),
        GenerationConfig(gen_length=8, guidance_scale=1.5, suffix=" background."),
    ],
    ids=str,
)
def test_a_batch_answers_as_each_request_alone(
    mdlm: Mdlm, requests: list[Inputs], stop_word: str, config: GenerationConfig, stops: bool
) -> None:
    if stops:
        config = replace(config, stop=(stop_word, "<|eot_id|>"))
    prompts = [mdlm.embed(inputs) for inputs in requests]
    assert len({len(prompt.embeds) for prompt in prompts}) > 1
    together = [state.token_ids for state in denoise(mdlm, prompts, config)]
    alone = [denoise(mdlm, [prompt], config)[0].token_ids for prompt in prompts]
    assert together == alone


def test_a_stop_sequence_ends_its_row_alone(
    mdlm: Mdlm, requests: list[Inputs], stop_word: str
) -> None:
    prompts = [mdlm.embed(inputs) for inputs in requests]
    states = denoise(mdlm, prompts, GenerationConfig(gen_length=12, stop=(stop_word,)))
    assert {state.finish_reason for state in states} == {"stop", "length"}
    assert all((len(state.token_ids) < 12) == (state.finish_reason == "stop") for state in states)


def test_guidance_is_the_published_formula(mdlm: Mdlm, requests: list[Inputs]) -> None:
    """One step commits the argmax of un + (scale + 1)(cond - un), rows of other lengths beside."""
    prompts = [mdlm.embed(inputs) for inputs in requests[:2]]
    config = GenerationConfig(gen_length=6, steps=1, guidance_scale=2.0)
    state = DenoisingState(mdlm, prompts[0], config)
    denoising_step(mdlm, [DenoisingState(mdlm, prompts[1], GenerationConfig(gen_length=4)), state])
    batch = first_step_batch(mdlm, prompts[:1], Response(6, 6))
    blind = batch.embeds.clone()
    blind[0, : state.prompt_length] = mdlm.mask_embedding
    with torch.no_grad():
        conditional = mdlm.logits(batch.embeds, batch.positions)[0]
        unconditional = mdlm.logits(blind, batch.positions)[0]
    logits = unconditional + 3.0 * (conditional - unconditional)
    logits[:, list(mdlm.tokens.suppressed)] = -torch.inf
    assert state.ids == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_requests_join_and_leave_between_steps(
    mdlm: Mdlm, requests: list[Inputs], temperature: float
) -> None:
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


def test_masked_visual_positions_are_never_filled(
    mdlm: Mdlm, requests: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = mdlm.embed(requests[0])
    embeds = prompt.embeds.clone()
    embeds[prompt.visual] = mdlm.mask_embedding
    masked = type(prompt)(embeds, prompt.visual, prompt.spans)
    state = DenoisingState(mdlm, masked, GenerationConfig(gen_length=8))
    seen: list[Tensor] = []
    forward = mdlm.logits

    def recorded(sequences: Tensor, positions: Tensor, lengths: Tensor | None = None) -> Tensor:
        seen.append(sequences.clone())
        return forward(sequences, positions, lengths)

    monkeypatch.setattr(mdlm, "logits", recorded)
    while not state.done:
        denoising_step(mdlm, [state])
    assert len(seen) == state.steps_run == 8
    for step, sequences in enumerate(seen):
        assert torch.equal(sequences[0, : state.prompt_length], embeds)
        response = sequences[0, state.prompt_length :]
        assert int((response == mdlm.mask_embedding).all(-1).sum()) == 8 - step
    assert mdlm.tokens.mask not in state.token_ids


def test_stop_sequence_cuts_the_answer(
    mdlm: Mdlm, requests: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = mdlm.embed(requests[0])
    plain = denoise(mdlm, [prompt], GenerationConfig(gen_length=8))[0]
    stop = plain.token_ids[3:4]
    monkeypatch.setattr(mdlm, "encode_stop", {"<stop>": stop}.__getitem__)
    stopped = denoise(mdlm, [prompt], GenerationConfig(gen_length=8, stop=("<stop>",)))[0]
    assert stopped.finish_reason == "stop"
    assert stopped.stop_at is not None
    assert stopped.ids[stopped.stop_at] == stop[0]
    assert stop[0] not in stopped.token_ids
    assert mdlm.tokens.mask not in stopped.token_ids
    assert plain.finish_reason == "length"


def scripted(mdlm: Mdlm, monkeypatch: pytest.MonkeyPatch, tokens: list[int]) -> None:
    """Makes the model predict `tokens`, the later the surer, whatever it is asked."""

    def logits(embeds: Tensor, positions: Tensor, lengths: Tensor | None = None) -> Tensor:
        start = embeds.shape[1] - len(tokens)
        found = torch.zeros(*positions.shape, mdlm.vocab_size)
        for row, column in torch.cartesian_prod(*map(torch.arange, positions.shape)).tolist():
            place = int(positions[row, column]) - start
            found[row, column, tokens[place]] = 1.0 + place
        return found

    monkeypatch.setattr(mdlm, "logits", logits)


@pytest.mark.parametrize("block_length", [4, 2, 1])
def test_a_predicted_mask_before_a_stop_ends_with_the_steps(
    mdlm: Mdlm, requests: list[Inputs], monkeypatch: pytest.MonkeyPatch, block_length: int
) -> None:
    """The mask before the stop sequence is never filled: the steps must end the loop."""
    word = mdlm.encode_text("a")[0]
    config = GenerationConfig(gen_length=4, block_length=block_length)
    scripted(mdlm, monkeypatch, [mdlm.tokens.mask, word, mdlm.tokens.eot, word])
    state = denoise(mdlm, [mdlm.embed(requests[3])], config)[0]
    assert state.finish_reason == "stop"
    assert state.token_ids == [mdlm.tokens.mask, word]
    assert state.steps_run <= config.n_steps


def test_the_earliest_of_overlapping_stop_sequences_counts(
    mdlm: Mdlm, requests: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = (mdlm.encode_text(letter)[0] for letter in "abc")
    scripted(mdlm, monkeypatch, [c, a, b, a, b, c])
    stops = {"abc": [a, b, c], "ba": [b, a], "too long": [a] * 9}
    monkeypatch.setattr(mdlm, "encode_stop", stops.__getitem__)
    config = GenerationConfig(gen_length=6, stop=tuple(stops))
    state = denoise(mdlm, [mdlm.embed(requests[3])], config)[0]
    assert state.token_ids == [c, a]


@pytest.mark.parametrize("stop", ["<|mdm_mask|>", "a<|mdm_mask|>"])
def test_a_stop_sequence_of_masks_is_refused(mdlm: Mdlm, requests: list[Inputs], stop: str) -> None:
    with pytest.raises(InvalidSetting, match="mask") as caught:
        DenoisingState(mdlm, mdlm.embed(requests[3]), GenerationConfig(stop=(stop,)))
    assert caught.value.param == "stop"


@pytest.mark.parametrize("remasking", ["low_confidence", "random", "margin", "entropy"])
def test_predictions_that_are_not_numbers_are_an_error(
    mdlm: Mdlm, requests: list[Inputs], monkeypatch: pytest.MonkeyPatch, remasking: Remasking
) -> None:
    state = DenoisingState(
        mdlm, mdlm.embed(requests[3]), GenerationConfig(gen_length=4, remasking=remasking)
    )
    monkeypatch.setattr(
        mdlm, "logits", lambda e, p, n=None: torch.full((*p.shape, mdlm.vocab_size), torch.nan)
    )
    with pytest.raises(PurifierError, match="float32"):
        denoising_step(mdlm, [state])
    assert state.ids == [mdlm.tokens.mask] * 4


def test_a_response_that_does_not_fit_is_refused(mdlm: Mdlm, requests: list[Inputs]) -> None:
    with pytest.raises(PromptTooLong, match="exceed"):
        answer_batch(mdlm, requests[:1], generation=GenerationConfig(gen_length=4096))


def test_check_ends_the_generation_between_steps(mdlm: Mdlm, requests: list[Inputs]) -> None:
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
def test_defended_batch_equals_each_alone(mdlm: Mdlm, requests: list[Inputs], level: Level) -> None:
    masking = MaskingConfig(level=level, ratio=0.3)
    generation = GenerationConfig(gen_length=6)
    together = answer_batch(mdlm, requests, generation=generation, masking=masking)
    for inputs, answer in zip(requests, together, strict=True):
        alone = answer_batch(mdlm, [inputs], generation=generation, masking=masking)[0]
        assert answer.token_ids == alone.token_ids
        assert answer.masked is not None
        assert alone.masked is not None
        assert torch.equal(answer.masked, alone.masked)
    assert together[-1].n_units == 0
    assert set(together[0].timings) == {"encode", "saliency", "mask", "denoise"}
