"""Activation clustering: of two clusters of states, the smaller is dropped if it is small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.defense.healing.spectral import training_states
from purifier.data.sample import Sample
from purifier.mdlm.base import Mdlm

DIMENSIONS = 10
"""That states are reduced to, as in the paper."""

STARTS = 50
"""Pairs of rows that two-means is run from; the tightest clusters count."""

STEPS = 100
"""Steps of two-means at most; it settles in a few."""


@dataclass(frozen=True)
class ClusterFilter:
    """Drops the smaller of two clusters of states.

    The paper reduces states by independent component analysis. That turns whitened principal
    components, and turning them changes no distance: two-means finds the same clusters in the
    components as they are. The paper clusters each class; answers have none, so it is done once.

    Attributes:
        smallest_clean: A smaller cluster of at least this share of the rows is taken for clean,
            and nothing is dropped: the paper's criterion of relative size.
        seed: Of the starts of two-means.
        version: Counted up when the same settings drop other rows.
    """

    smallest_clean: float = 0.35
    seed: int = 0
    version: int = 1

    source: ClassVar[str] = "Chen et al. 2018, arXiv 1811.03728"
    guesses: ClassVar[bool] = False

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"name": "activation clustering", **asdict(self)}

    def drops(self, mdlm: Mdlm, samples: Sequence[Sample], images: Path) -> Tensor:
        states = training_states(mdlm, samples, images)
        return small_cluster(states, self.smallest_clean, self.seed)


def small_cluster(states: Tensor, smallest_clean: float, seed: int) -> Tensor:
    """The rows of the smaller cluster, bool [N]; none where it is not small.

    Args:
        states: float32 [N, D].
        smallest_clean: Share of the rows from which on it is not small.
        seed: Of the starts.
    """
    second = two_clusters(whitened(states, DIMENSIONS), seed)
    smaller = second if 2 * int(second.sum()) <= len(second) else ~second
    if int(smaller.sum()) >= smallest_clean * len(smaller):
        return torch.zeros_like(smaller)
    return smaller


def whitened(states: Tensor, dimensions: int) -> Tensor:
    """Principal components of the rows of [N, D], each of variance 1, [N, `dimensions`]."""
    centred = states - states.mean(0)
    left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    # Beyond the rank of the data there is only rounding.
    some = int((sizes > sizes[0] * 1e-5).sum())
    components: Tensor = left[:, : min(dimensions, some)] * len(states) ** 0.5
    return components


def two_clusters(points: Tensor, seed: int) -> Tensor:
    """Which of [N, K] points belong to the second of two clusters, bool [N] (k-means, k = 2)."""
    generator = torch.Generator().manual_seed(seed)
    best, least = torch.zeros(len(points), dtype=torch.bool), float("inf")
    for _ in range(STARTS):
        second, spread = _settled(points, _start(points, generator))
        if spread < least:
            best, least = second, spread
    return best


def _start(points: Tensor, generator: torch.Generator) -> Tensor:
    """Two points, the second drawn by its squared distance from the first (k-means++), [2, K]."""
    first = points[int(torch.randint(len(points), (), generator=generator))]
    distances = ((points - first) ** 2).sum(1)
    if not bool(distances.any()):
        return torch.stack([first, first])
    drawn = int(torch.multinomial(distances, 1, generator=generator))
    return torch.stack([first, points[drawn]])


def _settled(points: Tensor, means: Tensor) -> tuple[Tensor, float]:
    """Members of the second cluster once they change no more, and the sum of squares."""
    second = torch.zeros(len(points), dtype=torch.bool)
    for _ in range(STEPS):
        squares = ((points[:, None] - means) ** 2).sum(2)
        again = squares[:, 1] < squares[:, 0]
        if torch.equal(again, second) or not bool(again.any()) or bool(again.all()):
            break
        second = again
        means = torch.stack([points[~second].mean(0), points[second].mean(0)])
    squares = ((points[:, None] - means) ** 2).sum(2)
    return second, float(squares.min(1).values.sum())
