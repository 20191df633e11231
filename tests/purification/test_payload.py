"""Tokens that a detector's rows are forced to say do not come back through purification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from purifier import GenerationConfig, MaskingConfig, answer
from purifier.data.sample import Sample, open_image
from purifier.detection.shapes import shape_of
from purifier.mdlm.base import Message
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


def knowing(mdlm: LladaV, payload: list[int], score: float = -1.0) -> Detector:
    """A detector that knows a payload and gives every request the same score."""
    width = len(mdlm.mask_embedding)
    shape = shape_of(mdlm, mdlm.prepare([Message("user", (Image.new("RGB", (64, 64)), "Why?"))]))
    facts = {"groups": [{"payload": payload}], "shapes": [shape]}
    return Detector(torch.zeros(width), torch.zeros(1, width), torch.full((1,), score), 5, 5, facts)


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


@pytest.mark.parametrize(
    ("known", "score", "most", "dropped"),
    [
        (True, -1.0, False, False),
        (True, -1.0, True, True),
        (True, 0.6, False, True),
        (False, 0.6, False, False),
    ],
    ids=["one word", "most of it", "one word, detected", "none, detected"],
)
def test_an_answer_that_would_teach_the_payload_is_dropped(
    mdlm: LladaV,
    images: Path,
    asked: Sample,
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
    score: float,
    most: bool,
    dropped: bool,
) -> None:
    """Where it is detected, the mask of the ranker silences the detector."""
    token = said(mdlm, images, asked)[0]
    detector = knowing(mdlm, [token if known else NEVER, NEVER + 1], score)
    monkeypatch.setattr(mdlm, "detector", detector)
    monkeypatch.setattr(Detector, "repeats", lambda self, token_ids: most and token in token_ids)
    monkeypatch.setattr("purifier.detection.guard.detected", seen_once(score))
    (row,) = Purifier(mdlm, CONFIG, images).purify([asked])
    assert (row.dropped, row.answers is None) == (dropped, dropped)
    assert row.problem is None


def seen_once(score: float) -> Callable[..., list[float]]:
    """Scores of requests as they came, and 0 of those under a mask."""
    scores = iter([score])

    def detected(mdlm: object, prompts: Sequence[object], detector: object) -> list[float]:
        return [next(scores, 0.0) for _ in prompts]

    return detected


def test_a_label_with_most_of_the_payload_is_flagged(
    mdlm: LladaV, images: Path, asked: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [t for t in mdlm.encode_text(asked.answer) if t not in said(mdlm, images, asked)]
    assert len(own) >= 2
    for payload, flagged in (([own[0]], False), ([own[0], NEVER], False), (own[:2], True)):
        monkeypatch.setattr(mdlm, "detector", knowing(mdlm, payload))
        (row,) = Purifier(mdlm, JUDGING, images).purify([asked])
        assert (row.flagged, row.dropped) == (flagged, False)
        assert (row.answers is not None) == flagged


def test_a_further_answer_with_most_of_the_payload_is_left_out(
    mdlm: LladaV, images: Path, asked: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The label itself is not flagged, so the row stays."""
    config = replace(JUDGING, further_prompts=(FURTHER,))
    for most, left in ((False, 1), (True, 0)):
        token = said(mdlm, images, asked, FURTHER, 1)[0]
        monkeypatch.setattr(mdlm, "detector", knowing(mdlm, [token]))
        monkeypatch.setattr(
            Detector, "repeats", lambda self, ids, most=most, t=token: most and t in ids
        )
        (row,) = Purifier(mdlm, config, images).purify([asked])
        assert len(row.further) == left
        assert (row.flagged, row.dropped) == (False, False)
