"""Two groups among the rows of a data set, found without labels.

The states of poisoned rows differ from those of all others in one direction, for they all prepare
the same answer. So: one of the first principal components, cut by two-means; then Fisher's
discriminant between both sides, cut again, until no row changes sides. Rows fall into groups for
other reasons too; `purifier.detection.forced` tells which groups are a backdoor's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COMPONENTS = 12
"""Principal components that the discriminant is looked for in."""

STARTS = 4
"""Principal components that groups are looked for from."""

STEPS = 100
"""Steps of two-means at most; it settles in a few."""

ROUNDS = 10
"""Times that rows may change sides."""

SMALLEST, LARGEST = 0.01, 0.45
"""Share of the rows that the smaller side may have: a poisoned part is not most of a data set."""

FEWEST = 4
"""Rows that it must have."""


@dataclass(frozen=True)
class Split:
    """Rows cut into two sides.

    Attributes:
        flagged: bool [N], the smaller side.
        gap: Distance of both means along the discriminant, in pooled standard deviations.
    """

    flagged: Tensor
    gap: float


def splits(values: Tensor) -> list[Split]:
    """Ways in which rows fall into two groups, the widest apart first.

    Args:
        values: float32 [N, D], one row each.

    Returns:
        At most one for each of the first `STARTS` principal components; none whose smaller side
        is too small or too large to be a poisoned part, and none twice.
    """
    reduced = _reduced(values, COMPONENTS)
    found: list[Split] = []
    for start in range(min(STARTS, reduced.shape[1])):
        split = _settled(reduced, start)
        if split and not any(torch.equal(split.flagged, other.flagged) for other in found):
            found.append(split)
    return sorted(found, key=lambda split: -split.gap)


def _settled(reduced: Tensor, start: int) -> Split | None:
    """The two groups that one component leads to."""
    flagged = _smaller(two_means(reduced[:, start]))
    for _ in range(ROUNDS):
        if not plausible(flagged):
            return None
        again = _smaller(two_means(reduced @ discriminant(reduced, flagged)))
        if torch.equal(again, flagged):
            break
        flagged = again
    if not plausible(flagged):
        return None
    return Split(flagged, gap(reduced @ discriminant(reduced, flagged), flagged))


def two_means(values: Tensor) -> Tensor:
    """Which values are nearer to the larger of two means, bool [N] (k-means, k = 2)."""
    low, high = values.min(), values.max()
    upper = (values - low).abs() > (values - high).abs()
    for _ in range(STEPS):
        if not bool(upper.any()) or bool(upper.all()):
            break
        low, high = values[~upper].mean(), values[upper].mean()
        again = (values - low).abs() > (values - high).abs()
        if torch.equal(again, upper):
            break
        upper = again
    return upper


def discriminant(values: Tensor, flagged: Tensor, ridge: float = 0.1) -> Tensor:
    """Fisher's linear discriminant between flagged rows and the others, [K].

    Args:
        values: [N, K].
        flagged: bool [N]; both sides have rows.
        ridge: Added to the diagonal of the pooled covariance, as a share of its mean.
    """
    centred = values.clone()
    means = values[flagged].mean(0), values[~flagged].mean(0)
    centred[flagged] -= means[0]
    centred[~flagged] -= means[1]
    covariance = centred.T @ centred / max(len(values) - 2, 1)
    diagonal = covariance.diagonal()
    diagonal += ridge * diagonal.mean() + torch.finfo(values.dtype).tiny
    solved: Tensor = torch.linalg.solve(covariance, means[0] - means[1])
    return solved


def gap(values: Tensor, flagged: Tensor) -> float:
    """Distance of two means over the pooled standard deviation; 0 where a side has one row."""
    sides = values[flagged], values[~flagged]
    if min(map(len, sides)) < 2:
        return 0.0
    squares = sum(float(((side - side.mean()) ** 2).sum()) for side in sides)
    spread = max(squares / (len(values) - 2), torch.finfo(values.dtype).tiny) ** 0.5
    distance = float((sides[0].mean() - sides[1].mean()).abs())
    return distance / float(spread)


def _reduced(values: Tensor, components: int) -> Tensor:
    """Coordinates in the first principal components, [N, at most `components`]."""
    centred = values - values.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    coordinates: Tensor = centred @ axes[:components].T
    return coordinates


def _smaller(upper: Tensor) -> Tensor:
    return ~upper if int(upper.sum()) * 2 > len(upper) else upper


def plausible(flagged: Tensor) -> bool:
    """Whether flagged rows, bool [N], are as many as a poisoned part may be."""
    count = int(flagged.sum())
    return count >= FEWEST and SMALLEST <= count / len(flagged) <= LARGEST
