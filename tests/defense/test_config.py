"""Settings of the defence that are refused, and by which name."""

from __future__ import annotations

import pytest

from purifier.defense.config import MaskingConfig
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
        ({"pooling": 2}, "pooling"),
        ({"pooling": 3.0}, "pooling"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_bad_settings_name_the_field(settings, param) -> None:
    with pytest.raises(InvalidSetting) as caught:
        MaskingConfig(**settings)
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize("settings", [{"ratio": 0.0}, {"ratio": 1}, {"seed": 2**63 - 1}])
def test_the_ends_of_the_ranges_are_allowed(settings) -> None:
    MaskingConfig(**settings)
