"""States of the answer positions before anything is denoised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from purifier.defense.first_step import Response, first_step_batch
from purifier.mdlm.base import Mdlm, Prompt
from purifier.mdlm.detector import Detector
from purifier.numeric import require_finite


@torch.no_grad()
def answer_states(mdlm: Mdlm, prompts: Sequence[Prompt], *, length: int, positions: int) -> Tensor:
    """Output of the last layer at the first answer positions, their mean.

    Args:
        mdlm: The model.
        prompts: Encoded requests, run as one batch.
        length: Masks behind every prompt.
        positions: How many of them, from the first on, are averaged.

    Returns:
        float32 [B, D], on the CPU.

    Raises:
        PurifierError: If a state is not finite.
    """
    batch = first_step_batch(mdlm, prompts, Response(positions, length))
    states = mdlm.scored_states(batch.embeds, batch.positions, batch.lengths)
    found = states.float().mean(1).cpu()
    require_finite(found)
    return found


def detected(mdlm: Mdlm, prompts: Sequence[Prompt], detector: Detector) -> list[float]:
    """Scores of requests by a detector; `LOUD` and more is a trigger."""
    states = answer_states(mdlm, prompts, length=detector.length, positions=detector.positions)
    return [float(score) for score in detector.scores(states)]
