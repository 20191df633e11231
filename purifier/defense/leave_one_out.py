"""Leave-one-out: mask one unit, run the model again, see how far the first step moves.

Slow, and the truth that the quadratic forms approximate to second order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from purifier.defense.first_step import Response, first_step_logits
from purifier.defense.sites import Encoding, Site
from purifier.numeric import wide


@torch.no_grad()
def leave_one_out_kl(
    site: Site,
    encoding: Encoding,
    response: Response,
    *,
    top_k: int | None = None,
    rows: int = 8,
    check: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """KL divergence of the first step without a unit from the first step with it.

    Summed over the scored positions: sum_v p[v] (log p[v] - log p_i[v]).

    Args:
        site: Where units are masked.
        encoding: The requests, nothing masked.
        response: The response behind the prompts.
        top_k: Restricts both distributions to the ids most likely with nothing masked; None
            takes the whole vocabulary.
        rows: Sequences in one forward pass.
        check: Called before every forward pass; what it raises ends the work.

    Returns:
        Per image float64 of its shape.
    """
    mdlm = site.mdlm
    references: dict[int, tuple[Tensor, Tensor]] = {}
    result = []
    for image, (owner, shape) in enumerate(zip(site.owners, site.shapes, strict=True)):
        if owner not in references:
            logits = first_step_logits(mdlm, [encoding.prompts[owner]], response)
            count = logits.shape[-1] if top_k is None else min(top_k, logits.shape[-1])
            values, ids = logits.topk(count, dim=-1)
            references[owner] = (torch.log_softmax(wide(values), dim=-1), ids)
        reference, ids = references[owner]
        scores = []
        n_units = int(torch.tensor(shape).prod())
        for start in range(0, n_units, rows):
            check()
            units = range(start, min(start + rows, n_units))
            logits = first_step_logits(mdlm, [site.without(image, u) for u in units], response)
            kept = wide(logits.gather(-1, ids.expand(len(units), -1, -1)))
            change = reference - torch.log_softmax(kept, dim=-1)
            scores.append((reference.exp() * change).sum((-1, -2)).cpu())
        result.append(torch.cat(scores).reshape(shape))
    return result
