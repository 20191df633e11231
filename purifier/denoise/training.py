"""The training objective of masked diffusion (LLaDA, equation 3; LLaDA-V's code).

t ~ U(0, 1) per sample, p = (1 - eps) t + eps
a position is masked with probability p if it carries a label
loss = mean over samples of  sum over masked positions of CE / p / labelled positions
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-3


def mask_probability(t: Tensor) -> Tensor:
    """P of every sample from its diffusion time: float32 [B] -> float32 [B]."""
    return (1 - EPSILON) * t + EPSILON


def forward_process(labelled: Tensor, t: Tensor, uniform: Tensor) -> Tensor:
    """Which positions are masked.

    Args:
        labelled: bool [B, N], positions that may be masked.
        t: float32 [B] in [0, 1).
        uniform: float32 [B, N] in [0, 1).

    Returns:
        bool [B, N].
    """
    return (uniform < mask_probability(t)[:, None]) & labelled


def masked_diffusion_loss(
    logits: Tensor, targets: Tensor, masked: Tensor, t: Tensor, n_labelled: Tensor
) -> Tensor:
    """The weighted cross-entropy over masked positions.

    Args:
        logits: float32 [B, P, V]; row p predicts `targets[:, p]`.
        targets: int64 [B, P]; anything where not masked.
        masked: bool [B, P].
        t: float32 [B].
        n_labelled: [B], labelled positions of every sample; one without any adds nothing.

    Returns:
        float32 scalar.
    """
    # All positions, then a product with the mask: picking rows would stall a GPU at every step.
    safe = torch.where(masked, targets, 0)
    ce = functional.cross_entropy(logits.transpose(1, 2), safe, reduction="none")
    weights = masked / (mask_probability(t) * n_labelled.clamp_min(1))[:, None]
    return (ce * weights).sum() / len(logits)


def draw_times(n: int, generator: torch.Generator) -> Tensor:
    """Diffusion times, float32 [n], on the generator's device."""
    return torch.rand(n, generator=generator, device=generator.device)
