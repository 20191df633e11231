"""Visual saliency of a prompt, and the choice of what is masked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import floor

import torch
from torch import Tensor

from purifier.defense.config import MaskingConfig
from purifier.defense.first_step import Response
from purifier.defense.rankers import RANKERS, Task
from purifier.defense.sites import Encoding, Site, TokenSite
from purifier.denoise.config import GenerationConfig
from purifier.errors import InvalidSetting
from purifier.mdlm.base import Mdlm, Prompt
from purifier.numeric import require_finite


def visual_saliency(
    mdlm: Mdlm,
    prompt: Prompt,
    config: MaskingConfig,
    *,
    generation: GenerationConfig | None = None,
) -> Tensor:
    """How much the first denoising step depends on each visual token of a prompt.

    A prompt holds visual tokens only, so this is the saliency of level `token` whatever
    `config.level` says; `defend` takes both levels. The first block is scored, as in the published
    code, whatever `config.scored_length` says.

    Args:
        mdlm: The model; its parameters get no gradients.
        prompt: The request, from `mdlm.embed`.
        config: Ranker, probes, top-K, temperature and seed.
        generation: How the answer will be denoised; defaults of `GenerationConfig`.

    Returns:
        float64 [n_visual] on the CPU, images one after another, newline tokens included.

    Raises:
        InvalidSetting: If the ranker works at level `patch` only.
        PurifierError: If a score is not finite.
    """
    config = replace(config, level="token")
    if not prompt.spans:
        return torch.zeros(0, dtype=torch.float64)
    response = Response.of(mdlm, generation or GenerationConfig())
    return torch.cat(site_scores(TokenSite(mdlm, [prompt]), response, config))


def site_scores(
    site: Site,
    response: Response,
    config: MaskingConfig,
    check: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """`unit_scores` of requests that are not encoded yet."""
    differentiates = RANKERS[config.ranker].differentiates
    with torch.inference_mode(False), torch.set_grad_enabled(differentiates):
        encoding = site.encode(differentiable=differentiates)
        return unit_scores(site, encoding, response, config, check)


def unit_scores(
    site: Site,
    encoding: Encoding,
    response: Response,
    config: MaskingConfig,
    check: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """Per image, the scores that the choice is made by, float64 of its shape.

    `check` is called between the passes of the model; what it raises ends the work.

    Raises:
        PurifierError: If a score is not finite.
    """
    ranker = RANKERS[config.ranker]
    raw = ranker.scores(Task(site, encoding, response, config, check))
    scores = site.finish(raw, 1 if ranker.regional else config.pooling)
    for score in scores:
        require_finite(score)
    return scores


def choose(scores: Tensor, ratio: float, threshold: float = 0.0) -> Tensor:
    """What is masked: the top fraction, as far as it reaches the threshold.

    Args:
        scores: Of any shape, finite.
        ratio: Mask ratio.
        threshold: Least score that is masked; 0 masks the top fraction whatever it scores.

    Returns:
        bool of the scores' shape.
    """
    top = top_fraction(scores.flatten(), ratio).reshape(scores.shape)
    return top & (scores >= threshold) if threshold > 0 else top


def top_fraction(saliency: Tensor, ratio: float) -> Tensor:
    """Chooses the floor(ratio * n) most salient entries.

    Args:
        saliency: [n], finite.
        ratio: Mask ratio, 0 to 1.

    Returns:
        bool [n]; of equal entries the earlier ones are chosen first.

    Raises:
        InvalidSetting: If the ratio is out of range.
        PurifierError: If an entry is not finite.
    """
    if not 0.0 <= ratio <= 1.0:
        raise InvalidSetting("ratio must be between 0 and 1.", param="ratio")
    require_finite(saliency)
    chosen = torch.zeros(saliency.shape, dtype=torch.bool, device=saliency.device)
    order = saliency.argsort(descending=True, stable=True)
    chosen[order[: floor(ratio * len(saliency))]] = True
    return chosen
