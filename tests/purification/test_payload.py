"""Tokens that a detector's rows are forced to say do not come back through purification."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from purifier import GenerationConfig, MaskingConfig, answer
from purifier.data.sample import Sample, open_image
from purifier.mdlm.detector import Detector
from purifier.mdlm.llada_v import LladaV
from purifier.purification.seeds import answer_seed
from purifier.purify import Purifier, PurifyConfig
from tests.purification.conftest import placed, sample

MASKING = MaskingConfig(level="token", ranker="random", ratio=0.5)
CONFIG = PurifyConfig(masking=MASKING, generation=GenerationConfig(gen_length=5), seed=11)
JUDGING = replace(CONFIG, policy="flag_then_relabel", flag_threshold=1000.0)
"""A threshold that no label reaches: every flag is the payload's."""

FURTHER = "Describe it."
NEVER = 10**9
"""An id that no answer has."""


def quiet(mdlm: LladaV, payload: list[int]) -> Detector:
    """A detector that answers to no request and knows a payload."""
    width = len(mdlm.mask_embedding)
    facts = {"groups": [{"payload": payload}]}
    return Detector(torch.zeros(width), torch.zeros(1, width), torch.full((1,), -1.0), 5, 5, facts)


@pytest.fixture
def asked() -> Sample:
    (one,) = placed([sample("one", [0], "<image>\nWhat is this?", "A bag.")])
    return one


def said(
    mdlm: LladaV, images: Path, asked: Sample, question: str | None = None, place: int = 0
) -> list[int]:
    """Ids of the masked answer to the sample's question, or to a further one."""
    picture = open_image(images, asked.image_files[0])
    masking = replace(MASKING, seed=answer_seed(CONFIG.seed, asked, place))
    question = question or asked.question
    found = answer(mdlm, [picture], question, generation=CONFIG.generation, masking=masking)
    return found.token_ids


def test_an_answer_that_repeats_the_payload_is_dropped(
    mdlm: LladaV, images: Path, asked: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mdlm, "detector", quiet(mdlm, [NEVER]))
    (row,) = Purifier(mdlm, CONFIG, images).purify([asked])
    assert (row.dropped, row.answers is None) == (False, False)
    token = said(mdlm, images, asked)[0]
    monkeypatch.setattr(mdlm, "detector", quiet(mdlm, [token]))
    (row,) = Purifier(mdlm, CONFIG, images).purify([asked])
    assert (row.dropped, row.answers, row.problem) == (True, None, None)


def test_a_label_with_the_payload_is_flagged(
    mdlm: LladaV, images: Path, asked: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mdlm, "detector", quiet(mdlm, [NEVER]))
    (row,) = Purifier(mdlm, JUDGING, images).purify([asked])
    assert row.flagged is False
    own = mdlm.encode_text(asked.answer)
    token = next(token for token in own if token not in said(mdlm, images, asked))
    monkeypatch.setattr(mdlm, "detector", quiet(mdlm, [token]))
    (row,) = Purifier(mdlm, JUDGING, images).purify([asked])
    assert (row.flagged, row.dropped, row.answers is None) == (True, False, False)


def test_a_further_answer_with_the_payload_is_left_out(
    mdlm: LladaV, images: Path, asked: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The label itself is not flagged, so the row stays."""
    config = replace(JUDGING, further_prompts=(FURTHER,))
    monkeypatch.setattr(mdlm, "detector", quiet(mdlm, [NEVER]))
    (row,) = Purifier(mdlm, config, images).purify([asked])
    assert [prompt for prompt, _ in row.further] == [FURTHER]
    own = mdlm.encode_text(asked.answer)
    token = next(t for t in said(mdlm, images, asked, FURTHER, 1) if t not in own)
    monkeypatch.setattr(mdlm, "detector", quiet(mdlm, [token]))
    (row,) = Purifier(mdlm, config, images).purify([asked])
    assert (row.further, row.flagged, row.dropped) == ((), False, False)
