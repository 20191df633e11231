"""DiSP's published saliency: one forward pass, then one backward pass for every probe.

    s = sum <q, z>,  q drawn with covariance diag(p) - p p^T from the top-K logits z
    score_i = 1/2 mean over probes of < ds/de_i , e_M - e_i >^2

As in the published code, q depends on the logits and the gradient runs through it. Logits are
taken at every position and gradients at every embedding, though only the first block's logits
and the visual embeddings are used.
"""

from __future__ import annotations

from math import floor

import torch
from torch import Tensor

from benchmarks.plain.forward import PlainPrompt, all_logits, embed_ids
from purifier.defense.config import MaskingConfig
from purifier.denoise.config import GenerationConfig
from purifier.errors import InvalidSetting
from purifier.mdlm.llada_v import LladaV

_LEAST = 1e-40


def official_scores(
    mdlm: LladaV, prompt: PlainPrompt, generation: GenerationConfig, masking: MaskingConfig
) -> Tensor:
    """Scores of the visual tokens, float64 [T].

    Raises:
        InvalidSetting: If the settings are not those of the published method.
    """
    _check(masking)
    mask = mdlm.mask_embedding.detach()
    tail = mask.expand(1, generation.gen_length, -1)
    suffix = mdlm.encode_text(generation.suffix) if generation.suffix else []
    embeds = torch.cat([prompt.embeds, tail, embed_ids(mdlm, suffix)[None]], dim=1)
    embeds = embeds.detach().clone().requires_grad_()
    start = prompt.embeds.shape[1]
    with torch.enable_grad():
        logits = all_logits(mdlm, embeds)[:, start : start + generation.block]
        squares = [
            _directional(scalar, embeds, mask)[prompt.visual].square()
            for scalar in _probe_scalars(logits, start - len(prompt.visual), masking)
        ]
    return 0.5 * torch.stack(squares).mean(dim=0)


def top_positions(scores: Tensor, ratio: float) -> Tensor:
    """Indices of the floor(ratio * T) highest scores, int64."""
    return scores.argsort(descending=True)[: floor(ratio * len(scores))]


def mask_visual(mdlm: LladaV, prompt: PlainPrompt, chosen: Tensor) -> PlainPrompt:
    """The prompt with chosen visual embeddings replaced by the mask token's."""
    embeds = prompt.embeds.clone()
    embeds[0, prompt.visual[chosen]] = mdlm.mask_embedding.detach()
    return PlainPrompt(embeds, prompt.visual)


def _probe_scalars(logits: Tensor, n_text: int, masking: MaskingConfig) -> list[Tensor]:
    """<q, z> of every probe, each with a graph through q."""
    generator = torch.Generator().manual_seed(masking.seed)
    # The published code draws a permutation for its text masking, whether it masks text or not.
    torch.randperm(n_text, generator=generator)
    values, ids = logits.topk(masking.top_k, dim=-1)
    p = torch.softmax(values.to(torch.float64), dim=-1)
    u = p.clamp_min(_LEAST).sqrt()
    scalars = []
    for _ in range(masking.probes):
        y = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device)
        q = u * (y - (y * u).sum(-1, keepdim=True) * u)
        full = torch.zeros_like(logits).scatter(-1, ids, q.to(logits.dtype))
        scalars.append((full * logits).sum())
    return scalars


def _directional(scalar: Tensor, embeds: Tensor, mask: Tensor) -> Tensor:
    """One backward pass: <ds/de_i, e_M - e_i> of every position, float64 [N]."""
    (gradient,) = torch.autograd.grad(scalar, embeds, retain_graph=True)
    direction = mask.to(torch.float64) - embeds.detach()[0].to(torch.float64)
    return (gradient[0].to(torch.float64) * direction).sum(dim=-1)


def _check(masking: MaskingConfig) -> None:
    published = masking.level == "token" and masking.ranker == "official"
    if not published or masking.temperature != 1 or masking.threshold != 0:
        raise InvalidSetting(
            "The plain path takes level token, ranker official, temperature 1 and threshold 0."
        )
