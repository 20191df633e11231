"""Answers and labels of several blocks: what is masked at each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from purifier import GenerationConfig, MaskingConfig, answer_batch
from purifier.answer import user_messages
from purifier.data.sample import open_image
from purifier.defense.config import Level
from purifier.defense.defend import defend
from purifier.denoise.config import CacheName
from purifier.denoise.state import DenoisingState
from purifier.denoise.step import denoising_step
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.segments import Segment
from purifier.purification.blocks import BlockwiseDefence

BLOCKS = GenerationConfig(gen_length=8, block_length=4, stop=())
MASKINGS = [
    MaskingConfig(level="token", ranker="fisher", ratio=0.4, probes=2),
    MaskingConfig(level="token", ranker="random", ratio=0.5),
    MaskingConfig(level="patch", ranker="fisher", ratio=0.3, probes=2),
]
DEFAULTS = [
    MaskingConfig(level=level, ranker="two-stage", ratio=0.4, threshold=0.0011)
    for level in get_args(Level)
]
"""As the product masks, with a threshold that a random model reaches."""


@pytest.fixture(scope="module")
def requests(mdlm: LladaV, images: Path) -> list[Inputs]:
    questions = ("What is this?", "What colour is the background, please?", "Is it a bag?")
    return [
        mdlm.prepare(user_messages(open_image(images, f"{number}.png"), question))
        for number, question in enumerate(questions)
    ]


@pytest.mark.parametrize("masking", MASKINGS, ids=lambda m: f"{m.level}-{m.ranker}")
def test_one_block_is_answered_as_anywhere_else(
    mdlm: LladaV, requests: list[Inputs], masking: MaskingConfig
) -> None:
    generation = GenerationConfig(gen_length=6)
    defence = BlockwiseDefence(mdlm, generation, masking)
    found = defence.answer(defence.ask(requests, [masking.seed] * len(requests)))
    expected = answer_batch(mdlm, requests, generation=generation, masking=masking)
    assert [state.token_ids for state in found] == [each.token_ids for each in expected]


def test_without_rescoring_the_first_mask_stays(mdlm: LladaV, requests: list[Inputs]) -> None:
    masking = MASKINGS[0]
    defence = BlockwiseDefence(mdlm, BLOCKS, masking, rescore=False)
    found = defence.answer(defence.ask(requests, [masking.seed] * len(requests)))
    expected = answer_batch(mdlm, requests, generation=BLOCKS, masking=masking)
    assert [state.token_ids for state in found] == [each.token_ids for each in expected]


@pytest.mark.parametrize("masking", MASKINGS, ids=lambda m: f"{m.level}-{m.ranker}")
def test_a_later_block_is_masked_on_what_is_committed(
    mdlm: LladaV, requests: list[Inputs], masking: MaskingConfig
) -> None:
    defence = BlockwiseDefence(mdlm, BLOCKS, masking)
    states = defence.answer(defence.ask(requests, [3, 4, 5]))
    for inputs, state, seed in zip(requests, states, (3, 4, 5), strict=True):
        continued = replace(inputs, ids=torch.cat([inputs.ids, torch.tensor(state.ids[:4])]))
        rest = GenerationConfig(gen_length=4, stop=())
        (here,) = defend(mdlm, [continued], rest, masking, seeds=[seed])
        alone = DenoisingState(mdlm, here.prompt, rest)
        while not alone.done:
            denoising_step(mdlm, [alone])
        assert state.ids[4:] == alone.ids


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("masking", DEFAULTS, ids=lambda m: m.level)
def test_every_block_begins_with_the_step_that_its_mask_was_found_by(
    mdlm: LladaV,
    requests: list[Inputs],
    masking: MaskingConfig,
    cache: CacheName,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = BlockwiseDefence(mdlm, BLOCKS, masking)
    expected = exact.answer(exact.ask(requests, [3, 4, 5]))
    # A full pass at every step: what differs from the exact path is who runs the first one.
    cached = BlockwiseDefence(mdlm, replace(BLOCKS, cache=cache, prompt_interval=1), masking)
    asked = cached.ask(requests, [3, 4, 5])
    assert all(each.defended.masked.any() for each in asked)
    passes: list[int] = []
    run = mdlm.segment_logits

    def counted(segments: Sequence[Segment]) -> list[Tensor]:
        passes.append(len(segments))
        return run(segments)

    monkeypatch.setattr(mdlm, "segment_logits", counted)
    states = cached.answer(asked)
    assert [state.ids for state in states] == [state.ids for state in expected]
    # Of four steps a block three are left; the second block's mask took two passes.
    assert passes == [len(requests)] * (3 + 2 + 3)


def test_rescoring_moves_the_mask(mdlm: LladaV, requests: list[Inputs]) -> None:
    """Otherwise the tests above would hold for a mask that is taken once."""
    defence = BlockwiseDefence(mdlm, BLOCKS, MASKINGS[0])
    asked = defence.ask(requests, [3, 4, 5])
    states = defence.answer(asked)
    moved = [
        not torch.equal(state.prompt, each.defended.prompt.embeds)
        for state, each in zip(states, asked, strict=True)
    ]
    assert any(moved)


def test_a_finished_answer_is_not_masked_anew(
    mdlm: LladaV, requests: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    masking = MaskingConfig(level="token", ranker="random", ratio=0.5)
    (first,) = BlockwiseDefence(mdlm, BLOCKS, masking).ask(requests[:1], [0])
    word = mdlm.decode(BlockwiseDefence(mdlm, BLOCKS, masking).answer([first])[0].ids[1:2])
    stopping = BlockwiseDefence(mdlm, replace(BLOCKS, stop=(word,)), masking)
    asked = stopping.ask(requests[:1], [0])

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished answer was scored")

    monkeypatch.setattr("purifier.purification.blocks.defend", refuse)
    (state,) = stopping.answer(asked)
    assert state.finish_reason == "stop"
    assert len(state.token_ids) < 4


@pytest.mark.parametrize("rescore", [False, True])
@pytest.mark.parametrize("masking", MASKINGS[::2], ids=lambda m: m.level)
def test_labels_are_judged_alike_in_any_company(
    mdlm: LladaV, requests: list[Inputs], masking: MaskingConfig, rescore: bool
) -> None:
    defence = BlockwiseDefence(mdlm, BLOCKS, masking, rescore=rescore)
    labels = [mdlm.encode_text(text) for text in ("A bag of many colours.", "Red", "")]
    assert len(labels[0]) > 8
    together = defence.disagreements(defence.ask(requests, [3, 4, 5]), labels)
    alone = [
        defence.disagreements(defence.ask([inputs], [seed]), [label])[0]
        for inputs, seed, label in zip(requests, (3, 4, 5), labels, strict=True)
    ]
    assert together == pytest.approx(alone, abs=1e-4)
    assert together[0] > 0
    assert together[2] == 0


def test_the_worst_block_counts(mdlm: LladaV, requests: list[Inputs]) -> None:
    defence = BlockwiseDefence(mdlm, BLOCKS, MASKINGS[1])
    label = mdlm.encode_text("A bag of many colours.")
    found = [
        defence.disagreements(defence.ask(requests[:1], [3]), [label[:length]])[0]
        for length in (4, 8, len(label))
    ]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_a_label_is_looked_at_until_it_is_enough(mdlm: LladaV, requests: list[Inputs]) -> None:
    defence = BlockwiseDefence(mdlm, BLOCKS, MASKINGS[1])
    label = mdlm.encode_text("A bag of many colours.")
    asked = defence.ask(requests[:1], [3])
    (first,), (whole,) = (defence.disagreements(asked, [ids]) for ids in (label[:4], label))
    assert defence.disagreements(asked, [label], enough=first) == pytest.approx([first])
    assert defence.disagreements(asked, [label], enough=2 * whole) == pytest.approx([whole])


def test_where_nothing_is_masked_no_label_is_judged(
    mdlm: LladaV, requests: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    defence = BlockwiseDefence(mdlm, BLOCKS, MaskingConfig(level="token", ratio=0.0))
    asked = defence.ask(requests, [3, 4, 5])
    monkeypatch.setattr(mdlm, "logits", None)
    assert defence.disagreements(asked, [[1], [2], [3]]) == [0.0, 0.0, 0.0]


def test_a_label_beyond_the_context_is_judged_as_far_as_it_fits(
    mdlm: LladaV, requests: list[Inputs]
) -> None:
    block = (mdlm.max_length - requests[0].length) // 2 - 1
    generation = GenerationConfig(gen_length=block, steps=1)
    defence = BlockwiseDefence(mdlm, generation, MASKINGS[1], rescore=False)
    asked = defence.ask(requests[:1], [3])
    word = mdlm.encode_text("bag")[0]
    fits, longer = ([word] * (2 * block + more) for more in (0, 50))
    assert defence.disagreements(asked, [longer]) == defence.disagreements(asked, [fits])
