"""The loss filter: labels that the compromised model finds likeliest are dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.defense.healing.rows import LENGTH, batches
from purifier.data.sample import Sample
from purifier.defense.first_step import Response
from purifier.mdlm.base import Mdlm
from purifier.purification.likelihood import label_log_likelihood


@dataclass(frozen=True)
class LossFilter:
    """Drops the labels of the lowest denoising loss.

    A backdoor is learned sooner and surer than the task, so the model agrees most with the
    poisoned labels. Anti-backdoor learning isolates them by the loss early in the training; here
    the trained model is what the defender has. The loss is that of the first denoising step, all
    positions masked and the image seen, the mean over the tokens of a label.

    Attributes:
        share: Share of the rows that is dropped.
        version: Counted up when the same settings drop other rows.
    """

    share: float = 0.3
    version: int = 1

    source: ClassVar[str] = "isolation of anti-backdoor learning, Li et al. 2021, arXiv 2110.11571"
    guesses: ClassVar[bool] = True

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"name": "loss", **asdict(self)}

    def drops(self, mdlm: Mdlm, samples: Sequence[Sample], images: Path) -> Tensor:
        response = Response(LENGTH, LENGTH)
        agreement = []
        for batch in batches(mdlm, samples, images):
            found = label_log_likelihood(mdlm, batch.prompts, response, batch.labels)
            agreement += [float(tokens.mean()) for tokens in found]
        return highest(torch.tensor(agreement), self.share)


def highest(scores: Tensor, share: float) -> Tensor:
    """Which scores are the highest, bool [N]; `share` of them, rounded, earlier rows first."""
    order = torch.sort(scores, descending=True, stable=True).indices
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[order[: round(share * len(scores))]] = True
    return chosen
