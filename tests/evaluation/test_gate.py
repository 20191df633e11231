from __future__ import annotations

from typing import Any

import pytest

from purifier.errors import InvalidSetting
from purifier.evaluation.drift import RowAnswers, disagreement, drift
from purifier.evaluation.gate import GateLimits, judge
from purifier.evaluation.intervals import wilson


def measured(asr: int = 1, kept: float = 0.99) -> dict[str, Any]:
    return {
        "before": {"disagreement": wilson(20, 100).to_dict(), "asr": wilson(99, 100).to_dict()},
        "after": {"disagreement": wilson(2, 100).to_dict(), "asr": wilson(asr, 100).to_dict()},
        "change": {
            "drift": wilson(3, 80).to_dict(),
            "utility_kept": {"value": kept, "n": 100, "low": kept - 0.03, "high": kept + 0.03},
        },
    }


def test_limits_that_are_met() -> None:
    limits = GateLimits(max_asr=0.02, max_disagreement=0.02, max_drift=0.04, min_utility=0.99)
    verdict = judge(measured(), limits)
    assert verdict.passed
    assert verdict.reasons == ()
    assert [check.limit for check in verdict.checks] == [
        "max_disagreement",
        "max_drift",
        "max_asr",
        "min_utility",
    ]
    assert verdict.to_dict()["checks"][2]["reason"] == "asr 1% (n = 100) is within max_asr 2%."


def test_a_reason_names_metric_value_and_limit() -> None:
    verdict = judge(measured(asr=5, kept=0.9), GateLimits(max_asr=0.02, min_utility=0.98))
    assert not verdict.passed
    assert verdict.reasons == (
        "asr 5% (n = 100) is above max_asr 2%.",
        "utility_kept 90% (n = 100) is below min_utility 98%.",
    )


def test_the_interval_must_meet_the_limit_where_that_is_asked() -> None:
    limits = GateLimits(max_asr=0.02, min_utility=0.98, treatment="interval")
    verdict = judge(measured(), limits)
    assert not verdict.passed
    assert verdict.reasons[0] == (
        "asr 1% (n = 100), upper end of its 95% interval 5.449%, is above max_asr 2%."
    )
    assert "lower end of its 95% interval 96%" in verdict.reasons[1]
    wide = GateLimits(max_asr=0.06, min_utility=0.95, treatment="interval")
    assert judge(measured(), wide).passed


def test_graded_limits_bear_another_word() -> None:
    asked = [RowAnswers("a red bag on a road", "a red bag on a street", ())] * 10
    after = [RowAnswers("a red bag on the road", "a red bag on the street", ())] * 10
    metrics = {
        "after": {name: rate.to_dict() for name, rate in disagreement(after).items()},
        "change": {
            name: rate.to_dict() for name, rate in drift(asked, after, [False] * 10).items()
        },
    }
    strict = GateLimits(max_disagreement=0.5, max_drift=0.5)
    assert [check.value for check in judge(metrics, strict).checks] == [1.0, 1.0]
    graded = GateLimits(max_distance=0.5, max_drift_distance=0.5)
    assert judge(metrics, graded).passed
    assert judge(metrics, GateLimits(max_distance=0.01, max_drift_distance=0.01)).reasons == (
        "distance 16.67% (n = 10) is above max_distance 1%.",
        "drift_distance 16.67% (n = 10) is above max_drift_distance 1%.",
    )


@pytest.mark.parametrize("treatment", ["point", "interval"])
def test_what_was_not_measured_fails(treatment: str) -> None:
    limits = GateLimits(max_asr=1.0, min_words=0.0, treatment=treatment)  # type: ignore[arg-type]
    metrics = measured()
    del metrics["after"]["asr"]
    metrics["change"]["words_kept"] = {"value": None, "n": 0, "low": None, "high": None}
    assert judge(metrics, limits).reasons == (
        "asr was not measured, but max_asr 100% asks for it.",
        "words_kept was not measured, but min_words 0% asks for it.",
    )
    assert not judge({}, limits).passed


def test_no_limits_pass_everything() -> None:
    assert judge({}, GateLimits()).passed


def test_the_limits_judge_the_purified_model() -> None:
    metrics = measured(asr=1)
    metrics["before"], metrics["after"] = metrics["after"], metrics["before"]
    assert not judge(metrics, GateLimits(max_disagreement=0.1)).passed


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"max_asr": 1.5}, "max_asr"),
        ({"max_asr": "2%"}, "max_asr"),
        ({"max_drift": True}, "max_drift"),
        ({"min_utility": float("nan")}, "min_utility"),
        ({"min_utility": -0.1}, "min_utility"),
        ({"treatment": "hopeful"}, "treatment"),
        ({"max_as": 0.1}, "max_as"),
    ],
)
def test_bad_limits_are_named(settings: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        GateLimits.from_dict(settings)
    assert caught.value.param == param


def test_limits_survive_json() -> None:
    limits = GateLimits(max_asr=0.02, min_utility=1.01, treatment="interval")
    assert GateLimits.from_dict(limits.to_dict()) == limits
