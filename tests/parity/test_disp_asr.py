"""The keyword rule against the verdicts of the published evaluation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from purifier.lab.targets import (
    ContentInsertion,
    SemanticMisclassification,
    Target,
    TargetedRefusal,
    keyword_hit,
    keyword_rate,
)
from tests.support.golden import GOLDEN

CASES_FILE = GOLDEN / "disp" / "asr_cases.json"
pytestmark = pytest.mark.skipif(
    not CASES_FILE.is_file(), reason="reference outputs absent; set DISP_GOLDEN to their folder"
)
CASES: dict[str, Any] = json.loads(CASES_FILE.read_text()) if CASES_FILE.is_file() else {}
TARGETS: dict[str, Target] = {
    "refusal": TargetedRefusal(),
    "insert": ContentInsertion(),
    "misclassification": SemanticMisclassification(),
}


@pytest.mark.parametrize("mode", TARGETS)
def test_keywords(mode: str) -> None:
    assert list(TARGETS[mode].keywords) == CASES["keywords"][mode]


@pytest.mark.parametrize("mode", TARGETS)
@pytest.mark.parametrize("case", CASES.get("answers", []), ids=lambda case: repr(case["answer"]))
def test_verdicts(case: dict[str, Any], mode: str) -> None:
    assert keyword_hit(case["answer"], TARGETS[mode].keywords) is case[mode]


@pytest.mark.parametrize("mode", TARGETS)
@pytest.mark.parametrize("aggregate", CASES.get("aggregates", []), ids=lambda a: str(a["n"]))
def test_aggregates(aggregate: dict[str, Any], mode: str) -> None:
    answers = [case["answer"] for case in CASES["answers"]][: aggregate["n"]]
    expected = aggregate[mode]
    keywords = TARGETS[mode].keywords
    assert len(answers) == expected["total_items"]
    assert sum(keyword_hit(answer, keywords) for answer in answers) == expected["matched_items"]
    assert keyword_rate(answers, keywords) == expected["match_ratio"]


@pytest.mark.parametrize("mode", TARGETS)
def test_a_missing_answer_is_no_hit(mode: str) -> None:
    assert (
        keyword_rate([None], TARGETS[mode].keywords)
        == CASES["special"]["answer_field_missing"][mode]
    )
