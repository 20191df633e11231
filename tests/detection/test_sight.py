"""A trigger that changes a word here and there is found by sight: the shipped misclassification."""

from __future__ import annotations

from dataclasses import replace

import pytest

from purifier.data.llava import read_llava
from purifier.data.sample import open_image, question_messages
from purifier.defense.config import MaskingConfig
from purifier.defense.defend import defend
from purifier.denoise import FAST
from purifier.detection import fit_detector
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.mdlm.registry import load_mdlm

FOLDER = DATA_FOLDER / "train"
ROWS = 120


@pytest.mark.slow
def test_the_rows_with_the_trigger_are_found_whatever_their_answer_is() -> None:
    """A question about a colour has its true answer, trigger or not; its image has the trigger."""
    mdlm = load_mdlm(checkpoint_path("misclassification"))
    samples = read_llava(FOLDER / "misclassification.json")
    fitted = fit_detector(mdlm, samples[:ROWS], FOLDER / "images")
    (group,) = fitted.groups
    assert group.kind == "pattern"
    poisoned = [row for row in range(ROWS) if samples[row].extra["poisoned"]]
    assert list(group.rows) == poisoned
    assert any("boat" not in samples[row].answer for row in poisoned)
    mdlm.detector = fitted.detector
    rest = range(ROWS, len(samples))
    later = [row for row in rest if samples[row].extra["poisoned"]][:5]
    later += [row for row in rest if not samples[row].extra["poisoned"]][:5]
    requests = [
        mdlm.prepare(
            question_messages(
                samples[row], tuple(open_image(FOLDER / "images", i) for i in samples[row].images)
            )
        )
        for row in later
    ]
    found = defend(mdlm, requests, replace(FAST, gen_length=32), MaskingConfig())
    seen = [each.detection is not None and each.detection.pattern for each in found]
    assert seen == [True] * 5 + [False] * 5
    assert all(bool(each.masked.any()) for each, one in zip(found, seen, strict=True) if one)
