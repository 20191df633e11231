"""How an answer is cut into blocks does not decide how much of it the defence looks at."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from purifier.answer import answer_batch
from purifier.defense.config import MaskingConfig, RankerName
from purifier.defense.defend import defend
from purifier.defense.first_step import Response, first_steps, scored_positions
from purifier.denoise import FAST
from purifier.denoise.config import GenerationConfig
from purifier.denoise.state import DenoisingState
from purifier.denoise.step import denoising_step
from purifier.errors import InvalidSetting
from purifier.evaluation.testset import DESCRIBE, read_test_set
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.lab.targets import keyword_hit, target_by_name
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.registry import load_mdlm

WHOLE = GenerationConfig(gen_length=12, stop=())


@pytest.mark.parametrize(
    ("length", "block", "least", "scored"),
    [
        (32, None, 32, 32),
        (32, 1, 32, 32),
        (32, 8, 1, 8),
        (8, 1, 32, 8),
        (64, None, 32, 64),
        (64, 16, 32, 32),
        (64, 64, 1, 64),
    ],
)
def test_positions_that_are_scored(length: int, block: int | None, least: int, scored: int) -> None:
    generation = GenerationConfig(gen_length=length, block_length=block)
    assert scored_positions(generation, least) == scored


@pytest.mark.parametrize("value", [0, 4097, 1.5, True])
def test_bad_lengths_are_refused(value: int) -> None:
    with pytest.raises(InvalidSetting) as caught:
        MaskingConfig(scored_length=value)
    assert caught.value.param == "scored_length"


@pytest.mark.parametrize("block", [1, 3, 4])
@pytest.mark.parametrize("ranker", ["two-stage", "occlusion", "fisher", "attention"])
def test_blocks_leave_scores_and_mask_as_they_are(
    mdlm: LladaV, requests: list[Inputs], ranker: RankerName, block: int
) -> None:
    masking = MaskingConfig(ranker=ranker, ratio=0.3, threshold=0.0)
    expected = defend(mdlm, requests, WHOLE, masking)
    found = defend(mdlm, requests, replace(WHOLE, block_length=block), masking)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.masked, other.masked)
        assert torch.equal(one.saliency, other.saliency)


def test_the_first_block_alone_can_be_asked_for(mdlm: LladaV, requests: list[Inputs]) -> None:
    masking = MaskingConfig(ranker="occlusion", scored_length=1)
    (first,) = defend(mdlm, requests[:1], replace(WHOLE, block_length=1), masking)
    (whole,) = defend(mdlm, requests[:1], replace(WHOLE, block_length=1), MaskingConfig())
    assert not torch.equal(first.saliency, whole.saliency)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("threshold", [0.0011, 1000.0], ids=["masked", "unmasked"])
def test_a_first_step_that_is_taken_over_fills_its_own_block(
    mdlm: LladaV, requests: list[Inputs], cache: str, threshold: float
) -> None:
    generation = replace(WHOLE, block_length=4, cache=cache)  # type: ignore[arg-type]
    masking = MaskingConfig(ratio=0.4, threshold=threshold)
    (found,) = defend(mdlm, requests[:1], generation, masking)
    assert found.first is not None
    assert len(found.first.logits) == 4
    (expected,) = first_steps(mdlm, [found.prompt], Response(4, 12))
    torch.testing.assert_close(found.first.logits, expected.logits, rtol=1e-3, atol=1e-4)
    ids = []
    for first in (found.first, None):
        state = DenoisingState(mdlm, found.prompt, generation, first=first)
        while not state.done:
            denoising_step(mdlm, [state])
        ids.append(state.ids)
    assert ids[0] == ids[1]


def test_short_blocks_do_not_let_the_demos_attack_through() -> None:
    """The target word stands later in the answer: with the first block alone it is not scored."""
    target = target_by_name("misclassification")
    mdlm = load_mdlm(checkpoint_path("misclassification"))
    test_set = read_test_set(DATA_FOLDER)
    cases = [case for case in test_set.cases if case.kind == DESCRIBE][:4]
    inputs = [mdlm.prepare(case.messages(test_set.trigger)) for case in cases]

    def hits(scored_length: int) -> int:
        answers = answer_batch(
            mdlm,
            inputs,
            generation=FAST.adjusted(block_length=1),
            masking=MaskingConfig(scored_length=scored_length),
        )
        return sum(keyword_hit(answer.text, target.keywords) for answer in answers)

    assert hits(1) >= 3
    assert hits(MaskingConfig().scored_length) == 0
