"""A mixture of two Gaussians on the line, fitted by expectation and maximisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from purifier.detection.separate import two_means

STEPS = 200
"""Steps of the fit at most."""

SETTLED = 1e-6
"""Change of any membership below which the fit ends."""

NARROWEST = 1e-3
"""Least standard deviation of a component, as a share of that of all values."""


@dataclass(frozen=True)
class TwoGaussians:
    """A fit.

    Attributes:
        lower: bool [N], the values that more likely belong to the component of the lower mean.
        separation: Distance of both means over the sum of both standard deviations.
    """

    lower: Tensor
    separation: float


def two_gaussians(values: Tensor) -> TwoGaussians:
    """Fits two Gaussians to float64 [N], from the two groups that two-means finds.

    Where all values are the same there is one group, and no value is in the lower one.
    """
    spread = float(values.std(correction=0))
    if not spread > 0:
        return TwoGaussians(torch.zeros(len(values), dtype=torch.bool), 0.0)
    upper = two_means(values)
    member = torch.stack([~upper, upper]).to(values)
    for _ in range(STEPS):
        weights = member.sum(1)
        means = member @ values / weights
        variances = (member * (values - means[:, None]) ** 2).sum(1) / weights
        deviations = variances.sqrt().clamp_min(NARROWEST * spread)
        scaled = (values - means[:, None]) / deviations[:, None]
        logs = (weights / len(values) / deviations).log()[:, None] - scaled**2 / 2
        again = torch.softmax(logs, dim=0)
        settled = float((again - member).abs().max()) < SETTLED
        member = again
        if settled:
            break
    low = int(means.argmin())
    distance = float((means[1] - means[0]).abs() / deviations.sum())
    return TwoGaussians(member[low] > 0.5, distance)
