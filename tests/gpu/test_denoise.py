"""The denoising step on a GPU commits the tokens of the CPU, with every remasking and cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from purifier import GenerationConfig, load_mdlm
from purifier.answer import user_messages
from purifier.denoise import FAST, DenoisingState, denoising_step
from purifier.mdlm.base import Mdlm
from tests.support.legible import legible

pytestmark = pytest.mark.gpu

EXACT = (
    GenerationConfig(gen_length=8),
    GenerationConfig(gen_length=8, block_length=4, remasking="margin"),
    GenerationConfig(gen_length=6, remasking="entropy", suffix=" background."),
    GenerationConfig(gen_length=6, remasking="random", seed=3),
    GenerationConfig(gen_length=8, temperature=0.7, seed=5),
    GenerationConfig(gen_length=8, guidance_scale=1.5),
)
CACHED = tuple(
    replace(FAST, gen_length=12, block_length=4, cache=cache, guidance_scale=scale)
    for cache in ("prefix", "dual", "dllm")
    for scale in (0.0, 1.5)
)


def answers(mdlm: Mdlm, settings: Sequence[GenerationConfig]) -> list[list[int]]:
    """What a batch of all settings answers to questions of different lengths."""
    prompts = [
        mdlm.embed(mdlm.prepare(user_messages(None, "What is this?" + " red" * number)))
        for number in range(len(settings))
    ]
    batch = [DenoisingState(mdlm, *pair) for pair in zip(prompts, settings, strict=True)]
    while running := [state for state in batch if not state.done]:
        denoising_step(mdlm, running)
    return [state.token_ids for state in batch]


@pytest.mark.parametrize("settings", [EXACT, CACHED, (*EXACT, *CACHED)])
def test_a_mixed_batch_answers_as_on_the_cpu(
    tiny_checkpoint: Path, device: str, settings: Sequence[GenerationConfig]
) -> None:
    expected = answers(legible(load_mdlm(tiny_checkpoint)), settings)
    found = answers(legible(load_mdlm(tiny_checkpoint, device=device)), settings)
    assert found == expected
    assert len({tuple(ids) for ids in found}) > 1
