"""Rates with the interval that their sample size allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt

Z_95 = 1.959963984540054
"""Normal quantile of a two-sided 95% interval."""


@dataclass(frozen=True)
class Rate:
    """A share of `n` cases and its 95% Wilson interval.

    Attributes:
        value: The share, 0 to 1; None if there was no case.
        n: Number of cases.
        low: Lower end; None if there was no case.
        high: Upper end; None if there was no case.
    """

    value: float | None
    n: int
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


def wilson(successes: float, n: int) -> Rate:
    """The 95% Wilson score interval (Wilson, 1927) of `successes` out of `n`.

    Args:
        successes: 0 to `n`. Where a case can succeed in part, the sum of the parts; such a sum
            varies no more than a count does, so the interval is then on the wide side.
        n: Number of cases.

    Raises:
        ValueError: If `successes` lies outside.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and {n}, got {successes}")
    if n == 0:
        return Rate(None, 0, None, None)
    p, z2 = successes / n, Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Rate(p, n, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


def kept_ratio(before: Sequence[bool], after: Sequence[bool]) -> Rate:
    """How much of a share is left: the ratio of two shares over the same cases, 95% interval.

    The hybrid Wilson interval for paired shares (Bonett and Price, Biometrics 2006): the cases
    are the same, so what both get right or wrong does not widen it.

    Args:
        before: One outcome for every case.
        after: The outcomes of the same cases, later.

    Returns:
        The ratio, which may lie above 1; no value where no case succeeded before.

    Raises:
        ValueError: If the numbers of cases differ.
    """
    pairs = list(zip(before, after, strict=True))
    both = sum(a and b for a, b in pairs)
    lost = sum(a and not b for a, b in pairs)
    won = sum(b and not a for a, b in pairs)
    first, second, n = both + lost, both + won, both + lost + won
    if not first:
        return Rate(None, len(pairs), None, None)
    spread = sqrt((lost + won + 2) / ((first + 1) * (second + 1)))
    parts = sum(sqrt((1 - (x + 1) / (n + 2)) / (x + 1)) for x in (first, second))
    first_low, first_high = _score_interval(first, n, Z_95 * spread / parts)
    second_low, second_high = _score_interval(second, n, Z_95 * spread / parts)
    high = second_high / first_low if first_low else None
    return Rate(second / first, len(pairs), second_low / first_high, high)


def kept_mean(before: Sequence[float], after: Sequence[float]) -> Rate:
    """How much of a mean is left: the ratio of two means over the same cases, 95% interval.

    The interval is the ratio estimator's, by linearisation; for graded scores, where
    `kept_ratio` is for outcomes.

    Args:
        before: One score for every case, not negative.
        after: The scores of the same cases, later.

    Returns:
        The ratio, which may lie above 1; no value where all scores were 0 before.

    Raises:
        ValueError: If the numbers of cases differ.
    """
    pairs = list(zip(before, after, strict=True))
    total = sum(before)
    if not total:
        return Rate(None, len(pairs), None, None)
    ratio = sum(after) / total
    half = Z_95 * sqrt(sum((new - ratio * old) ** 2 for old, new in pairs)) / total
    return Rate(ratio, len(pairs), max(0.0, ratio - half), ratio + half)


def _score_interval(successes: int, n: int, z: float) -> tuple[float, float]:
    """Ends of the score interval at quantile `z`."""
    centre = 2 * successes + z * z
    half = z * sqrt(z * z + 4 * successes * (1 - successes / n))
    scale = 2 * (n + z * z)
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
