from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from purifier.denoise.config import GenerationConfig
from purifier.denoise.sampler import denoise
from purifier.denoise.together import denoise_together
from purifier.mdlm.base import Mdlm, Prompt
from purifier.mdlm.registry import load_mdlm
from tests.support.legible import legible


@pytest.fixture(scope="module")
def mdlm(tiny_checkpoint: Path) -> Mdlm:
    return legible(load_mdlm(tiny_checkpoint))


def prompts(mdlm: Mdlm, count: int = 6) -> list[Prompt]:
    generator = torch.Generator().manual_seed(3)
    result = []
    for number in range(count):
        length = 5 + 3 * (number % 3)
        ids = torch.randint(0, mdlm.vocab_size, (length,), generator=generator)
        result.append(
            Prompt(mdlm.token_embeddings(ids).detach(), torch.zeros(length, dtype=torch.bool), ())
        )
    return result


def stop_word(mdlm: Mdlm) -> str:
    """A word the model says in the middle of an answer, as a stop sequence that bites."""
    config = GenerationConfig(gen_length=12, stop=())
    return mdlm.decode([denoise_together(mdlm, prompts(mdlm), config)[0][5]])


@pytest.mark.parametrize(
    "config",
    [
        GenerationConfig(gen_length=12),
        GenerationConfig(gen_length=12, block_length=4),
        GenerationConfig(gen_length=12, block_length=4, steps=6),
        GenerationConfig(gen_length=12, steps=30),
        GenerationConfig(gen_length=12, remasking="margin"),
        GenerationConfig(gen_length=12, remasking="entropy", suffix=" background."),
        GenerationConfig(gen_length=12, remasking="random"),
        GenerationConfig(gen_length=8, temperature=0.7, seed=5),
        GenerationConfig(gen_length=8, guidance_scale=1.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("stops", [False, True])
def test_equals_the_loop(mdlm: Mdlm, config: GenerationConfig, stops: bool) -> None:
    if stops:
        config = replace(config, stop=(stop_word(mdlm), "<|eot_id|>"))
    expected = [state.token_ids for state in denoise(mdlm, prompts(mdlm), config)]
    assert denoise_together(mdlm, prompts(mdlm), config) == expected


def test_a_stop_sequence_ends_its_row_alone(mdlm: Mdlm) -> None:
    config = GenerationConfig(gen_length=12, stop=(stop_word(mdlm),))
    lengths = [len(row) for row in denoise_together(mdlm, prompts(mdlm), config)]
    assert min(lengths) < 12
    assert max(lengths) == 12


def test_nothing_to_do(mdlm: Mdlm) -> None:
    assert denoise_together(mdlm, [], GenerationConfig()) == []
