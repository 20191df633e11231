"""Rates with the interval that their sample size allows."""

from __future__ import annotations

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
