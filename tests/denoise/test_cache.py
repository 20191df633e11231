"""Caches: exact where they compute everything, the same in any company, and in step with theory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from purifier import GenerationConfig, load_mdlm
from purifier.answer import user_messages
from purifier.denoise import DenoisingState, denoise, denoising_step
from purifier.denoise.cache import FirstPass, ResponseCache
from purifier.denoise.passes import candidate_logits
from purifier.mdlm.base import Mdlm, Prompt
from purifier.mdlm.segments import Segment
from tests.support.legible import legible

CACHES = ("prefix", "dual", "dllm")


@pytest.fixture(scope="module")
def mdlm(tiny_checkpoint: Path) -> Mdlm:
    return legible(load_mdlm(tiny_checkpoint))


@pytest.fixture(scope="module")
def prompts(mdlm: Mdlm) -> list[Prompt]:
    generator = torch.Generator().manual_seed(3)
    pictures = [
        Image.fromarray(torch.randint(0, 256, (h, w, 3), generator=generator).byte().numpy())
        for w, h in ((64, 64), (90, 40))
    ]
    asked = [user_messages(picture, "What is this?") for picture in pictures]
    asked.append(user_messages(None, "Is this a bag, or is it something else?"))
    return [mdlm.embed(mdlm.prepare(messages)) for messages in asked]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"block_length": 4},
        {"guidance_scale": 1.5, "block_length": 6},
        {"suffix": " end", "steps": 6},
        {"remasking": "margin", "temperature": 0.7},
        {"remasking": "random"},
    ],
)
def test_refreshing_everything_at_every_step_is_exact(
    mdlm: Mdlm, prompts: list[Prompt], cache: Any, settings: dict[str, Any]
) -> None:
    exact = GenerationConfig(gen_length=12, **settings)
    cached = replace(exact, cache=cache, prompt_interval=1, response_interval=1)
    expected = [denoise(mdlm, [prompt], exact)[0] for prompt in prompts]
    for state, known in zip(denoise(mdlm, prompts, cached), expected, strict=True):
        assert state.ids == known.ids
        assert state.steps_run == known.steps_run


@pytest.mark.parametrize("cache", CACHES)
def test_answers_do_not_depend_on_company(mdlm: Mdlm, prompts: list[Prompt], cache: Any) -> None:
    config = GenerationConfig(gen_length=12, block_length=6, cache=cache, prompt_interval=4)
    others = [
        config,
        replace(config, gen_length=8, block_length=8, guidance_scale=1.0),
        replace(config, cache="none"),
        replace(config, cache="dual", temperature=0.5, seed=4),
    ]
    jobs = [(prompt, settings) for prompt in prompts for settings in others]
    alone = [denoise(mdlm, [prompt], settings)[0].ids for prompt, settings in jobs]
    states = [DenoisingState(mdlm, prompt, settings) for prompt, settings in jobs]
    joined: list[DenoisingState] = []
    while any(not state.done for state in states):
        joined = states[: len(joined) + 2]  # two newcomers before every step
        if running := [state for state in joined if not state.done]:
            denoising_step(mdlm, running)
    assert [state.ids for state in states] == alone


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_only_the_part_between_full_passes_is_run(
    mdlm: Mdlm, prompts: list[Prompt], cache: Any
) -> None:
    config = GenerationConfig(
        gen_length=12, block_length=6, cache=cache, prompt_interval=3, suffix="end", stop=()
    )
    state = DenoisingState(mdlm, prompts[0], config)
    tail = state.length - state.prompt_length
    assert isinstance(state.cache, ResponseCache)
    seen = []
    while not state.done:
        full = state.cache.due(state.block)
        seen.append(full)
        if not full:
            places = state.cache.part(state.block, state.candidates(), tail)
            block_end = (state.block + 1) * 6
            assert places.start <= state.candidates()[0]
            assert places.stop == (tail if cache == "prefix" else block_end)
        denoising_step(mdlm, [state])
    # Twelve steps of one token: full at 0, 3 in the first block and again in the second.
    assert seen == [True, False, False] * 4


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_part_is_computed_as_in_the_whole_sequence(
    mdlm: Mdlm, prompts: list[Prompt], cache: Any
) -> None:
    """With nothing committed since the full pass, the stored features are the true ones."""
    exact = DenoisingState(mdlm, prompts[0], GenerationConfig(gen_length=8))
    state = DenoisingState(
        mdlm, prompts[0], GenerationConfig(gen_length=8, cache=cache, prompt_interval=8)
    )
    candidates = exact.candidates()
    expected = candidate_logits(mdlm, [exact], [candidates])[0]
    full = candidate_logits(mdlm, [state], [candidates])[0]
    assert isinstance(state.cache, ResponseCache)
    state.cache.step(1)
    assert not state.cache.due(0)
    part = candidate_logits(mdlm, [state], [candidates])[0]
    torch.testing.assert_close(full, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cache", CACHES)
def test_another_prompt_voids_what_was_stored(
    mdlm: Mdlm, prompts: list[Prompt], cache: Any
) -> None:
    exact = GenerationConfig(gen_length=8, stop=())
    cached = replace(exact, cache=cache, prompt_interval=8, response_interval=8)
    other = torch.flip(prompts[0].embeds, [0])
    logits = []
    for config in (exact, cached):
        state = DenoisingState(mdlm, prompts[0], config)
        denoising_step(mdlm, [state])
        state.see(other)
        logits.append(candidate_logits(mdlm, [state], [state.candidates()])[0])
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=1e-5)


def test_a_first_pass_that_was_run_before_is_taken_over(mdlm: Mdlm, prompts: list[Prompt]) -> None:
    config = GenerationConfig(gen_length=12, block_length=6, cache="prefix", prompt_interval=4)
    for prompt in prompts:
        expected = denoise(mdlm, [prompt], config)[0]
        other = DenoisingState(mdlm, prompt, config)
        stored = mdlm.key_values(other.length)
        masks = mdlm.mask_embedding.expand(config.gen_length, -1)
        wanted = range(len(prompt.embeds), len(prompt.embeds) + config.block)
        whole = Segment(torch.cat([prompt.embeds, masks]), 0, wanted, stored)
        logits = mdlm.segment_logits([whole])[0]
        state = DenoisingState(mdlm, prompt, config, first=FirstPass(stored, logits))
        while not state.done:
            denoising_step(mdlm, [state])
        assert (state.ids, state.steps_run) == (expected.ids, expected.steps_run)


def test_parallel_threshold_commits_all_that_is_sure(mdlm: Mdlm, prompts: list[Prompt]) -> None:
    config = GenerationConfig(gen_length=12, stop=())
    at_once = denoise(mdlm, [prompts[0]], replace(config, parallel_threshold=0.0))[0]
    assert at_once.steps_run == 1
    one_by_one = denoise(mdlm, [prompts[0]], replace(config, parallel_threshold=1.0))[0]
    assert one_by_one.ids == denoise(mdlm, [prompts[0]], config)[0].ids
    state = DenoisingState(mdlm, prompts[0], replace(config, parallel_threshold=0.5))
    state.commit([7] * 12, [0.6, 0.2, 0.9, *[0.1] * 9])
    assert [place for place, token in enumerate(state.ids) if token == 7] == [0, 2]
