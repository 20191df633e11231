"""How likely the model finds a given label, token by token, before anything is denoised.

A label is compared under two prompts of the same request, one masked and one not:

    disagreement = max over label tokens g of  p_g (log p_g - log q_g)

with p_g the first-step probability of the label's token with nothing masked and q_g that with
the defence's mask. It is the token's own term of the KL divergence between both: large only
where the model was sure of the token and masking takes the reason away. Tokens that the model
never expected, at whatever position of a long label, stay near 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from purifier.defense.first_step import Response, first_step_logits
from purifier.mdlm.base import Mdlm, Prompt
from purifier.numeric import require_finite, wide


@torch.no_grad()
def label_log_likelihood(
    mdlm: Mdlm, prompts: Sequence[Prompt], response: Response, labels: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Log-probabilities of label tokens at the first step, all response positions masked.

    Args:
        mdlm: The model.
        prompts: One for each label.
        response: The masked response behind every prompt.
        labels: Ids, at most `response.scored` of each label.

    Returns:
        Per label float64 [n], on the CPU.
    """
    logits = first_step_logits(mdlm, prompts, response)
    result = []
    for row, label in zip(logits, labels, strict=True):
        ids = torch.tensor(label, dtype=torch.long, device=row.device)
        chosen = torch.log_softmax(wide(row[: len(label)]), dim=-1).gather(-1, ids[:, None])
        result.append(chosen[:, 0].cpu())
    return result


def disagreement(unmasked: Tensor, masked: Tensor) -> float:
    """How much a label rests on what the mask hides, in nats; 0 if it does not.

    Args:
        unmasked: float64 [n], log-likelihoods with nothing masked.
        masked: float64 [n], the same under the mask.

    Raises:
        PurifierError: If one is not a number.
    """
    terms = unmasked.exp() * (unmasked - masked)
    require_finite(terms)
    return max(0.0, float(terms.max())) if len(terms) else 0.0
