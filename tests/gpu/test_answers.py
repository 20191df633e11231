"""Answers of the demo on a GPU: those of the CPU in float32, nearly all of them in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from purifier import MaskingConfig
from purifier.answer import answer_batch
from purifier.denoise import EXACT, FAST
from purifier.denoise.config import GenerationConfig
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from tests.gpu.conftest import OnDevice

pytestmark = pytest.mark.gpu

DEFENCES = [None, MaskingConfig(), MaskingConfig(level="token")]
LEAST_SAME_IN_BFLOAT16 = 0.8


def texts(
    mdlm: LladaV,
    questions: Sequence[Inputs],
    generation: GenerationConfig,
    masking: MaskingConfig | None,
) -> list[str]:
    made = answer_batch(mdlm, questions, generation=generation, masking=masking)
    return [answer.text for answer in made]


def share_of_same(one: Sequence[str], other: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


@pytest.mark.parametrize("masking", DEFENCES)
@pytest.mark.parametrize("generation", [EXACT, FAST], ids=["exact", "fast"])
def test_float32_answers_are_those_of_the_cpu(
    demo: LladaV,
    questions: list[Inputs],
    on_device: OnDevice,
    generation: GenerationConfig,
    masking: MaskingConfig | None,
) -> None:
    some = questions[:8]
    expected = texts(demo, some, generation, masking)
    assert texts(on_device(demo), some, generation, masking) == expected


@pytest.mark.parametrize("masking", DEFENCES)
def test_bfloat16_answers_are_nearly_those_of_float32(
    demo: LladaV,
    questions: list[Inputs],
    on_device: OnDevice,
    masking: MaskingConfig | None,
    record_property: Callable[[str, object], None],
) -> None:
    full = texts(on_device(demo), questions, FAST, masking)
    half = texts(on_device(demo, torch.bfloat16), questions, FAST, masking)
    same = share_of_same(half, full)
    record_property("same answers in bfloat16", f"{same:.3f} of {len(full)}")
    assert same >= LEAST_SAME_IN_BFLOAT16
