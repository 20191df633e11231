from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purifier.evaluation.intervals import Rate, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(10, 200, 0.0274, 0.0896), (0, 200, 0.0, 0.0188), (8, 10, 0.4902, 0.9433)],
)
def test_known_intervals(successes: int, n: int, low: float, high: float) -> None:
    rate = wilson(successes, n)
    assert rate.value == successes / n
    assert rate.low == pytest.approx(low, abs=5e-5)
    assert rate.high == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_its_value_and_mirrors(case: tuple[int, int]) -> None:
    successes, n = case
    rate, mirrored = wilson(successes, n), wilson(n - successes, n)
    assert rate.value is not None
    assert rate.low is not None
    assert rate.high is not None
    assert mirrored.high is not None
    assert 0 <= rate.low <= rate.value <= rate.high <= 1
    assert rate.low == pytest.approx(1 - mirrored.high)
    wider = wilson(successes, 2 * n - successes)
    assert wider.value is not None
    assert wider.value <= rate.value


def test_no_case_has_no_rate() -> None:
    assert wilson(0, 0) == Rate(None, 0, None, None)
    assert wilson(0, 0).to_dict() == {"value": None, "n": 0, "low": None, "high": None}


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3)])
def test_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="between 0 and 3"):
        wilson(successes, n)
