"""The denoising step on a GPU commits the tokens of the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from purifier import GenerationConfig, load_mdlm
from purifier.answer import user_messages
from purifier.denoise import DenoisingState, denoising_step
from purifier.mdlm.base import Mdlm
from tests.support.legible import legible

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SETTINGS = (
    GenerationConfig(gen_length=8),
    GenerationConfig(gen_length=8, block_length=4, remasking="margin"),
    GenerationConfig(gen_length=6, remasking="entropy", suffix=" background."),
    GenerationConfig(gen_length=6, remasking="random", seed=3),
    GenerationConfig(gen_length=8, temperature=0.7, seed=5),
    GenerationConfig(gen_length=8, guidance_scale=1.5),
)


def states(mdlm: Mdlm) -> list[DenoisingState]:
    prompts = [
        mdlm.embed(mdlm.prepare(user_messages(None, "What is this?" + " red" * number)))
        for number in range(len(SETTINGS))
    ]
    return [DenoisingState(mdlm, *pair) for pair in zip(prompts, SETTINGS, strict=True)]


def test_a_mixed_batch_answers_as_on_the_cpu(tiny_checkpoint: Path) -> None:
    found = []
    for device in ("cpu", "cuda"):
        mdlm = legible(load_mdlm(tiny_checkpoint, device=device))
        batch = states(mdlm)
        while running := [state for state in batch if not state.done]:
            denoising_step(mdlm, running)
        found.append([state.token_ids for state in batch])
    assert found[0] == found[1]
