"""The first-step distribution and the probes that sample its Fisher information.

At a scored position with distribution p over its top-K logits z, the Fisher matrix in the
logits is F = diag(p) - p p^T. A Hutchinson probe is q = C y with y standard normal and
C C^T = F. Two maps C must not be confused:

- `fisher`: C = diag(u) - p u^T with u = sqrt(p). The probe is held constant while
  <q, z> is differentiated. This is the estimator that the DiSP paper (arXiv 2602.22246)
  describes.
- `official`: what the published code pulls back. There q depends on the logits through p,
  and the gradient of <q, z> runs through that as well. The vector pulled back is again
  linear in y, so it has a map of its own: with c = sum_k p z and b = u . y,
  q + (z - c)(u y / 2 - b p) - p <q, z> / 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from purifier.numeric import wide

Estimator = Literal["fisher", "official"]

SMALLEST_PROBABILITY = 1e-40
"""Floor under the square root of a probability, as in the published code."""


@dataclass(frozen=True)
class FirstStepDistribution:
    """What the model would say first, restricted to the most likely tokens.

    Attributes:
        ids: int64 [B, G, K], most likely first.
        logits: float64 (or float32, see `of`) [B, G, K].
        probs: The same type, [B, G, K], softmax over the K of logits / temperature.
        temperature: Softening temperature.
    """

    ids: Tensor
    logits: Tensor
    probs: Tensor
    temperature: float

    @classmethod
    def of(
        cls, logits: Tensor, top_k: int, temperature: float = 1.0, *, float64: bool = True
    ) -> FirstStepDistribution:
        """Restricts logits [B, G, V] to the `top_k` largest (all, if there are fewer)."""
        values, ids = logits.detach().topk(min(top_k, logits.shape[-1]), dim=-1)
        z = wide(values, float64=float64)
        return cls(ids, z, torch.softmax(z / temperature, dim=-1), temperature)


def draw_probes(*, n_text: int, probes: int, scored: int, top_k: int, seed: int) -> Tensor:
    """Standard normal draws y, float64 [m, G, K], in the published code's random order.

    That code first draws a permutation of the text positions (for a text ratio it never
    uses), then one probe after the other.

    Args:
        n_text: Prompt positions that are not visual tokens.
        probes: Number of probes m.
        scored: Scored positions G.
        top_k: Entries K of the first-step distribution.
        seed: Seed of a generator on the CPU, whatever the model's device is.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.randperm(n_text, generator=generator)
    shape = (1, scored, top_k)
    return torch.cat(
        [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(probes)]
    )


def probe_map(distribution: FirstStepDistribution, estimator: Estimator) -> Tensor:
    """The matrices C of q = C y, float64 [B, G, K, K]."""
    p, z = distribution.probs, distribution.logits
    u = p.clamp_min(SMALLEST_PROBABILITY).sqrt()
    constant = torch.diag_embed(u) - outer(p, u)
    if estimator == "fisher":
        return constant
    centred = z - (p * z).sum(-1, keepdim=True)
    through_probe = (
        torch.diag_embed(0.5 * u * centred) - outer(p * centred, u) - 0.5 * outer(p, u * centred)
    )
    return constant + through_probe / distribution.temperature


def probe_basis(distribution: FirstStepDistribution, estimator: Estimator) -> Tensor:
    """A factor B of the same form, B B^T = C C^T, with as few columns as it needs.

    The `fisher` map takes u to zero, so K - 1 columns carry all of it.

    Returns:
        float64 [B, G, K, K - 1] for `fisher`, [B, G, K, K] for `official`.
    """
    matrices = probe_map(distribution, estimator)
    if estimator == "official":
        return matrices
    u = distribution.probs.clamp_min(SMALLEST_PROBABILITY).sqrt()
    # The most likely token comes first, so the reflection never divides by a small number.
    v = u.clone()
    v[..., 0] += 1.0
    reflection = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device) - (
        2.0 / (v * v).sum(-1)[..., None, None]
    ) * outer(v, v)
    return matrices @ reflection[..., 1:]


def apply_map(matrices: Tensor, draws: Tensor) -> Tensor:
    """Probes q = C y: [B, G, K, K] and [m, B, G, K] give [m, B, G, K]."""
    return torch.einsum("bgkl,mbgl->mbgk", matrices, draws)


def outer(left: Tensor, right: Tensor) -> Tensor:
    """Outer product over the last dimension."""
    return left[..., :, None] * right[..., None, :]
