"""The middle-sized model's layouts, seed and answers, at sizes that cost nothing."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from benchmarks.middle import (
    SMALL_TEXT,
    SMALL_VISION,
    VisualTokens,
    middle_mdlm,
    question,
    with_layout,
)
from purifier import GenerationConfig, answer_inputs
from purifier.mdlm.llada_v import LladaV


def small(seed: int = 0) -> LladaV:
    return middle_mdlm(seed=seed, vision=SMALL_VISION, text=SMALL_TEXT, vocabulary=1200)


@pytest.mark.parametrize("visual_tokens", get_args(VisualTokens))
def test_a_layout_gives_its_number_of_visual_tokens(visual_tokens: VisualTokens) -> None:
    mdlm = with_layout(small(), visual_tokens)
    inputs = question(mdlm)
    assert mdlm.embed(inputs).n_visual == visual_tokens
    answer = answer_inputs(mdlm, inputs, generation=GenerationConfig(gen_length=8, steps=2))
    assert answer.n_visual_tokens == visual_tokens
    # All masks alike would be a sign that positions do not matter, and a stop would be early.
    assert len(set(answer.token_ids)) > 2
    assert answer.finish_reason == "length"


def test_layouts_share_the_weights() -> None:
    mdlm = small()
    one, other = with_layout(mdlm, 729), with_layout(mdlm, 2929)
    assert one.modules is other.modules is mdlm.modules
    with pytest.raises(ValueError, match="729"):
        with_layout(mdlm, 730)  # type: ignore[arg-type]


def test_the_vocabulary_is_wide_and_text_uses_its_own_part() -> None:
    mdlm = small()
    assert mdlm.vocab_size == 1200
    assert mdlm.decode(mdlm.encode_text("Describe this image.")) == "Describe this image."
    assert mdlm.encode_stop("<|eot_id|>") == [mdlm.tokens.eot]


def test_a_seed_makes_one_model() -> None:
    weights = [small(seed).modules.lm_head.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    pictures = [question(small(), number).images[0].pixels for number in (0, 0, 1)]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])
