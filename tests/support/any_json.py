"""Anything that JSON can hold, and what readers of checkpoints stumble over."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

LONGEST_MESSAGE = 3000
THOROUGH = settings(
    max_examples=1000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NUMBERS = st.one_of(
    st.integers(-2, 70),
    st.integers(),
    st.sampled_from([2**24, 2**31, 2**63, 10**400, -(10**400)]),
    st.floats(),
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "anyres",
            "anyres_max_" + "9" * 5000,
            "(1x1),...,(6x6)",
            "(1x1),...,(99999999x99999999)",
            "(" * 5000,
            "[" * 100_000,
            "[(32, 32), (64, 32)]",
            "spatial_unpad",
            "flat",
            "x" * 5000,
            "..",
            "siglip_demo",
            "google/siglip2-so400m-patch14-384",
            "LlavaLLaDAModelLM",
            "\ud800",
            "a\0b",
        ]
    ),
)
VALUES: SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(TEXTS | st.just("auto_map"), inner, max_size=4)
    ),
    max_leaves=12,
)


def check_message(message: str) -> None:
    """A refusal says something, and does not repeat all of its input."""
    assert 0 < len(message) < LONGEST_MESSAGE
