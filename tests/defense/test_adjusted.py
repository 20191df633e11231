"""Settings given anew over others: what belonged to another setting is not kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from purifier.defense.config import EFFORTS, TOKEN_RANKER, MaskingConfig, default_threshold
from purifier.errors import InvalidSetting

PRODUCT = MaskingConfig(level="patch", ranker="occlusion", ratio=0.1, threshold=5.0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("patch", "occlusion", 5.0)),
        ({"ratio": 0.3, "ranker": None, "threshold": None}, ("patch", "occlusion", 5.0)),
        ({"threshold": 2.0}, ("patch", "occlusion", 2.0)),
        ({"ranker": "occlusion"}, ("patch", "occlusion", 5.0)),
        ({"level": "token"}, ("token", TOKEN_RANKER, default_threshold("token", TOKEN_RANKER))),
        ({"level": "token", "threshold": 1.0}, ("token", TOKEN_RANKER, 1.0)),
        ({"level": "token", "ranker": "random"}, ("token", "random", 0.0)),
        ({"ranker": "fisher"}, ("patch", "fisher", 0.0)),
        ({"ranker": "fisher", "threshold": 0.5}, ("patch", "fisher", 0.5)),
    ],
)
def test_what_belongs_to_another_setting_is_not_kept(
    given: dict[str, Any], expected: tuple[str, str, float]
) -> None:
    adjusted = PRODUCT.adjusted(**given)
    assert (adjusted.level, adjusted.ranker, adjusted.threshold) == expected
    assert adjusted.ratio == given.get("ratio", PRODUCT.ratio)


def test_a_ranker_that_works_at_both_levels_is_kept() -> None:
    own = MaskingConfig(level="patch", ranker="official", threshold=0.25)
    adjusted = own.adjusted(level="token")
    assert (adjusted.ranker, adjusted.threshold) == ("official", 0.25)
    back = own.adjusted(level="token", ratio=0.5).adjusted(level="patch", ratio=own.ratio)
    assert back == own


def test_another_level_takes_its_own_default_threshold_and_no_other() -> None:
    own = MaskingConfig(level="patch", ranker="two-stage")
    assert own.adjusted(level="token") == MaskingConfig(level="token", ranker="two-stage")
    assert own.adjusted(level="token").adjusted(level="patch") == own
    chosen = replace(own, threshold=3.5)
    assert chosen.adjusted(level="token").threshold == 3.5
    assert own.adjusted(level="token", threshold=1.0).threshold == 1.0


def test_a_ranker_that_was_asked_for_is_not_replaced() -> None:
    with pytest.raises(InvalidSetting) as caught:
        PRODUCT.adjusted(level="token", ranker="occlusion")
    assert caught.value.param == "ranker"


def test_a_level_of_effort_stands_for_several_fields_and_those_given_go_before_it() -> None:
    balanced = PRODUCT.adjusted(effort="balanced")
    assert (balanced.ranker, balanced.ratio, balanced.threshold) == (
        "group-testing",
        EFFORTS["balanced"]["ratio"],
        default_threshold("patch", "group-testing"),
    )
    assert PRODUCT.adjusted(effort="balanced", ratio=0.2).ratio == 0.2
    assert balanced.adjusted(effort="fast") == MaskingConfig()
    with pytest.raises(InvalidSetting, match="fast, balanced, thorough") as caught:
        PRODUCT.adjusted(effort="heroic")  # type: ignore[arg-type]
    assert caught.value.param == "effort"


def test_another_ranker_keeps_nothing_of_a_level_of_effort() -> None:
    balanced = MaskingConfig().adjusted(effort="balanced")
    assert balanced.gate > 0
    assert balanced.adjusted(ranker="two-stage") == replace(
        MaskingConfig(), probed=balanced.probed, probing=balanced.probing
    )
    assert balanced.adjusted(ranker="two-stage", ratio=0.4, gate=1.0).ratio == 0.4
    assert balanced.adjusted(ratio=0.2).adjusted(ranker="official").ratio == 0.2
    assert balanced.adjusted(level="token") == MaskingConfig(level="token")
