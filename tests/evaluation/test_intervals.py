from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from purifier.evaluation.intervals import Rate, kept_mean, kept_ratio, wilson


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


def outcomes(both: int, lost: int, won: int, neither: int) -> tuple[list[bool], list[bool]]:
    before = [True] * (both + lost) + [False] * (won + neither)
    after = [True] * both + [False] * lost + [True] * won + [False] * neither
    return before, after


def test_what_is_kept_of_a_share() -> None:
    rate = kept_ratio(*outcomes(340, 9, 5, 46))
    assert (rate.value, rate.n) == (345 / 349, 400)
    assert rate.value is not None
    assert rate.low is not None
    assert rate.high is not None
    assert 0.95 < rate.low < rate.value < rate.high < 1.02


def test_what_stayed_the_same_does_not_widen_the_interval() -> None:
    """Twice 90% of 100: with the same cases right, little is uncertain; with others, much."""
    same, other = kept_ratio(*outcomes(90, 0, 0, 10)), kept_ratio(*outcomes(80, 10, 10, 0))
    assert same.value == other.value == 1.0
    assert same.low is not None
    assert other.low is not None
    assert 1 - same.low < 0.5 * (1 - other.low)
    assert same.low < 1


def test_the_interval_of_a_ratio_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    n, lost, won, both = 200, 0.06, 0.02, 0.8
    covered = 0
    for _ in range(300):
        draw = rng.random(n)
        before = draw < both + lost
        after = (draw < both) | ((draw >= both + lost) & (draw < both + lost + won))
        rate = kept_ratio(before.tolist(), after.tolist())
        assert rate.low is not None
        assert rate.high is not None
        covered += rate.low <= (both + won) / (both + lost) <= rate.high
    assert 0.92 <= covered / 300 <= 0.995


def test_nothing_to_keep_has_no_ratio() -> None:
    assert kept_ratio([False, False], [True, False]) == Rate(None, 2, None, None)
    assert kept_mean([0.0], [0.5]) == Rate(None, 1, None, None)
    assert kept_ratio([], []).value is None
    with pytest.raises(ValueError):
        kept_ratio([True], [])


def test_what_is_kept_of_a_mean() -> None:
    rate = kept_mean([0.5, 1.0, 0.5, 1.0], [0.5, 1.0, 0.5, 0.7])
    assert rate.value == pytest.approx(2.7 / 3)
    assert rate.low is not None
    assert rate.high is not None
    assert rate.low < 0.9 < rate.high
    exact = kept_mean([0.4, 0.8], [0.2, 0.4])
    assert exact.low == exact.value == exact.high == 0.5
