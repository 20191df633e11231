"""Settings of the defence that are refused, and by which name."""

from __future__ import annotations

from typing import Any

import pytest

from purifier.defense.config import (
    OCCLUSION_THRESHOLD,
    PATCH_RANKER,
    TOKEN_RANKER,
    TOKEN_THRESHOLD,
    TWO_STAGE_THRESHOLD,
    MaskingConfig,
    default_threshold,
)
from purifier.errors import InvalidSetting


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"level": "pixel"}, "level"),
        ({"ranker": "best"}, "ranker"),
        ({"level": "token", "ranker": "occlusion"}, "ranker"),
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": 1000.1}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"ratio": 1.5}, "ratio"),
        ({"ratio": float("nan")}, "ratio"),
        ({"probes": 0}, "probes"),
        ({"probes": 2.5}, "probes"),
        ({"top_k": 1}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"temperature": 0.0}, "temperature"),
        ({"shortlist": 0}, "shortlist"),
        ({"shortlist": 26}, "shortlist"),
        ({"verify": 0}, "verify"),
        ({"verify": 1.5}, "verify"),
        ({"gate": -1.0}, "gate"),
        ({"gate": float("nan")}, "gate"),
        ({"probed": 0}, "probed"),
        ({"probed": 257}, "probed"),
        ({"probing": "guessing"}, "probing"),
        ({"pooling": 2}, "pooling"),
        ({"pooling": 3.0}, "pooling"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_bad_settings_name_the_field(settings: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        MaskingConfig(**settings)
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize("settings", [{"ratio": 0.0}, {"ratio": 1}, {"seed": 2**63 - 1}])
def test_the_ends_of_the_ranges_are_allowed(settings: dict[str, Any]) -> None:
    MaskingConfig(**settings)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("patch", PATCH_RANKER, default_threshold("patch", PATCH_RANKER))),
        ({"level": "token"}, ("token", TOKEN_RANKER, TOKEN_THRESHOLD)),
        ({"ranker": "exact"}, ("patch", "exact", 0.0)),
        ({"ranker": "occlusion"}, ("patch", "occlusion", OCCLUSION_THRESHOLD)),
        ({"ranker": "occlusion", "threshold": 0.0}, ("patch", "occlusion", 0.0)),
        ({"ranker": "leave-one-out", "threshold": 2.0}, ("patch", "leave-one-out", 2.0)),
        ({"ranker": "two-stage"}, ("patch", "two-stage", TWO_STAGE_THRESHOLD)),
        ({"level": "token", "ranker": "two-stage"}, ("token", "two-stage", TOKEN_THRESHOLD)),
        ({"ranker": "knockout"}, ("patch", "knockout", TOKEN_THRESHOLD)),
    ],
)
def test_ranker_and_threshold_that_nobody_chose(
    given: dict[str, Any], expected: tuple[str, str, float]
) -> None:
    for config in (MaskingConfig(**given), MaskingConfig().adjusted(**given)):
        assert (config.level, config.ranker, config.threshold) == expected


def test_a_ranker_that_was_asked_for_is_not_replaced() -> None:
    with pytest.raises(InvalidSetting) as caught:
        MaskingConfig().adjusted(level="token", ranker="occlusion")
    assert caught.value.param == "ranker"
