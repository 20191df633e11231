"""Properties that must hold for any input, and how many examples of it are tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Property = tuple[Callable[..., None], st.SearchStrategy[tuple[Any, ...]]]
"""A check, and the strategy that draws its arguments."""
Properties = Mapping[str, Property]


def require_property(prop: Property, examples: int) -> None:
    """Tries a property with the same examples at every run; fails at the first that breaks it."""
    check, drawn = prop

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
    )
    @given(values=drawn)
    def run(values: tuple[Any, ...]) -> None:
        check(*values)

    run()
