"""Which token a masked position would take, and how sure the model is of it.

A denoising step predicts every masked position, commits the surest ones and masks the
others again ("remasking").
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nlargest

import torch
from torch import Tensor

from purifier.denoise.config import Remasking
from purifier.numeric import wide


def choose_tokens(logits: Tensor, temperature: float, uniform: Tensor | None) -> Tensor:
    """The most likely token, or a Gumbel-max sample at a temperature.

    Args:
        logits: float32 [..., V], suppressed ids at -inf.
        temperature: 0 takes the argmax.
        uniform: float64 [..., V] in [0, 1); needed if the temperature is above 0.

    Returns:
        int64 [...].
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    if uniform is None:
        raise ValueError("a temperature above 0 needs uniform draws")
    # LLaDA's float64: low precision distorts the sampled distribution (arXiv 2409.02908). The
    # logarithm of its exp(logits) / (-log u)^T, which large guided logits do not overflow.
    z = wide(logits)
    return (z - temperature * torch.log(-torch.log(uniform.to(z.device)))).argmax(dim=-1)


def confidence(logits: Tensor, tokens: Tensor, remasking: Remasking) -> Tensor:
    """How sure the model is of `tokens`; larger is surer.

    Args:
        logits: float32 [..., V], noise-free, suppressed ids at -inf.
        tokens: int64 [...], the chosen tokens.
        remasking: `low_confidence` (probability of the token), `margin` (lead of the most likely
            over the second token) or `entropy` (negative entropy).

    Returns:
        float64 [...].
    """
    z = wide(logits)
    if remasking == "low_confidence":
        chosen = z.gather(-1, tokens.to(z.device)[..., None])[..., 0]
        return (chosen - z.logsumexp(dim=-1)).exp()
    if remasking == "margin":
        first, second = z.softmax(dim=-1).topk(2, dim=-1).values.unbind(-1)
        return first - second
    if remasking == "entropy":
        summands: Tensor = torch.special.entr(z.softmax(dim=-1))
        return -summands.sum(dim=-1)
    raise ValueError(f"{remasking} has no confidence of its own")


def surest(confidences: Sequence[float], k: int) -> list[int]:
    """Indices of the `k` largest confidences, all of them if there are fewer; ties by index."""
    return nlargest(k, range(len(confidences)), key=confidences.__getitem__)
