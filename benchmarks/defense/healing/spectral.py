"""Spectral signatures: rows far out along the first singular vector are dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.defense.healing.loss import highest
from benchmarks.defense.healing.rows import LENGTH, POSITIONS, batches
from purifier.data.sample import Sample
from purifier.detection.states import answer_states
from purifier.mdlm.base import Mdlm

MARGIN = 1.5
"""Rows that the paper drops, as a multiple of those that are poisoned."""


@dataclass(frozen=True)
class SpectralFilter:
    """Drops the rows whose states lie far out along the direction of most variance.

    The paper does this within each class; answers have no classes, so it is done once.

    Attributes:
        epsilon: The defender's guess of the poisoning rate; 1.5 times as many rows are dropped.
        version: Counted up when the same settings drop other rows.
    """

    epsilon: float = 0.2
    version: int = 1

    source: ClassVar[str] = "Tran et al. 2018, arXiv 1811.00636"
    guesses: ClassVar[bool] = True

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"name": "spectral signatures", **asdict(self)}

    def drops(self, mdlm: Mdlm, samples: Sequence[Sample], images: Path) -> Tensor:
        outlying = outlier_scores(training_states(mdlm, samples, images))
        return highest(outlying, MARGIN * self.epsilon)


def training_states(mdlm: Mdlm, samples: Sequence[Sample], images: Path) -> Tensor:
    """States of the first answer positions of all rows, the image seen, float32 [N, D]."""
    return torch.cat(
        [
            answer_states(mdlm, batch.prompts, length=LENGTH, positions=POSITIONS)
            for batch in batches(mdlm, samples, images)
        ]
    )


def outlier_scores(states: Tensor) -> Tensor:
    """Squared projections of the centred rows of [N, D] on their top singular vector, [N]."""
    centred = states - states.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    scores: Tensor = (centred @ axes[0]) ** 2
    return scores
