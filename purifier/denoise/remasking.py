"""Which token a masked position would take, and how sure the model is of it.

A denoising step predicts every masked position, commits the surest ones and masks the
others again ("remasking").
"""

from __future__ import annotations

import torch
from torch import Tensor

from purifier.denoise.config import Remasking


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
    # LLaDA's float64 form: low precision distorts the sampled distribution (arXiv 2409.02908).
    noise = (-torch.log(uniform)) ** temperature
    return (logits.double().exp() / noise).argmax(dim=-1)


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
    log_p = logits.double().log_softmax(dim=-1)
    p = log_p.exp()
    if remasking == "low_confidence":
        return p.gather(-1, tokens[..., None])[..., 0]
    if remasking == "margin":
        first, second = p.topk(2, dim=-1).values.unbind(-1)
        return first - second
    if remasking == "entropy":
        return torch.where(p > 0, p * log_p, 0.0).sum(dim=-1)
    raise ValueError(f"{remasking} has no confidence of its own")


def surest(confidences: Tensor, k: int) -> Tensor:
    """Indices of the `k` largest confidences (all of them if there are fewer)."""
    return confidences.topk(min(k, len(confidences))).indices
