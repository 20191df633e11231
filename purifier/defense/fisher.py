"""Saliency as a quadratic form: how far the first step moves if a piece is masked.

    score_i = 1/2 d_i^T F d_i,   d_i = J_i (direction_i),   F = diag(p) - p p^T

summed over the scored positions; it is the second-order term of the KL divergence between
the first-step distributions with and without piece i (DiSP, arXiv 2602.22246). With a
softening temperature T, p is that of logits / T and the factor 1 / T^2 is left out: it is
the same for all pieces. Sampled
with m Hutchinson probes, a score is its expected value times a chi-square variable with m
degrees of freedom divided by m; exactly, it takes one backward pass for every column of a
factor of F.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from purifier.defense.config import MaskingConfig
from purifier.defense.first_step import Response, first_step_batch
from purifier.defense.gradients import cotangents_at_once, directional_products
from purifier.defense.probes import (
    Estimator,
    FirstStepDistribution,
    apply_map,
    draw_probes,
    probe_basis,
    probe_map,
)
from purifier.defense.sites import Encoding
from purifier.mdlm.base import Mdlm


@dataclass(frozen=True)
class ScoredOutputs:
    """The top-K logits of the first step, with a graph, and what they say.

    Attributes:
        selected: float32 [B, G, K].
        distribution: The same as a distribution.
        at_once: Cotangents that one backward pass should carry.
        float64: The type that products are taken in.
    """

    selected: Tensor
    distribution: FirstStepDistribution
    at_once: int
    float64: bool = True

    def products(
        self,
        cotangents: Iterable[Tensor],
        encoding: Encoding,
        check: Callable[[], None] = lambda: None,
    ) -> list[Tensor]:
        """Directional products of cotangents [B, G, K], for every leaf [m, ...]."""
        return directional_products(
            self.selected,
            cotangents,
            encoding.leaves,
            encoding.directions,
            encoding.owners,
            at_once=self.at_once,
            float64=self.float64,
            check=check,
        )


def scored_outputs(
    mdlm: Mdlm, encoding: Encoding, response: Response, config: MaskingConfig
) -> ScoredOutputs:
    """The forward pass of the first step, restricted to the top-K tokens."""
    batch = first_step_batch(mdlm, encoding.prompts, response)
    logits = mdlm.scored_logits(batch.embeds, batch.positions, batch.lengths)
    distribution = FirstStepDistribution.of(
        logits, config.top_k, config.temperature, float64=config.float64
    )
    selected = logits.gather(-1, distribution.ids)
    return ScoredOutputs(
        selected, distribution, cotangents_at_once(batch.embeds), float64=config.float64
    )


def sampled_products(
    mdlm: Mdlm,
    encoding: Encoding,
    response: Response,
    config: MaskingConfig,
    estimator: Estimator,
    draws: Tensor | None = None,
    *,
    check: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """Directional products of m probes, for every leaf [m, ...].

    Args:
        mdlm: The model.
        encoding: Differentiable encoding of the requests; used up.
        response: The response behind the prompts.
        config: Probes, top-K, temperature and seed.
        estimator: Whether the probe is held constant.
        draws: float64 [m, B, G, K] to use instead of drawing from the seed.
        check: Called before every backward pass; what it raises ends the work.
    """
    outputs = scored_outputs(mdlm, encoding, response, config)
    if draws is None:
        draws = request_draws(encoding, config, outputs.distribution)
    matrices = probe_map(outputs.distribution, estimator)
    probes = apply_map(matrices, draws.to(matrices))
    return outputs.products(probes, encoding, check)


def exact_products(
    mdlm: Mdlm,
    encoding: Encoding,
    response: Response,
    config: MaskingConfig,
    estimator: Estimator = "fisher",
    *,
    check: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """Directional products of every column of the factor, for every leaf [G * columns, ...]."""
    outputs = scored_outputs(mdlm, encoding, response, config)
    basis = probe_basis(outputs.distribution, estimator)
    return outputs.products(columns(basis), encoding, check)


def sampled_scores(products: Tensor) -> Tensor:
    """Scores of sampled products [m, ...]: half their mean square."""
    return 0.5 * products.square().mean(0)


def exact_scores(products: Tensor) -> Tensor:
    """Scores of exact products [columns, ...]: half the sum of their squares."""
    return 0.5 * products.square().sum(0)


def request_draws(
    encoding: Encoding, config: MaskingConfig, distribution: FirstStepDistribution
) -> Tensor:
    """Draws [m, B, G, K]; each request's own are those it would get alone."""
    scored, top_k = distribution.ids.shape[1:]
    return torch.stack(
        [
            draw_probes(
                n_text=len(prompt.embeds) - prompt.n_visual,
                probes=config.probes,
                scored=scored,
                top_k=top_k,
                seed=encoding.seed(owner, config.seed),
            )
            for owner, prompt in enumerate(encoding.prompts)
        ],
        dim=1,
    )


def columns(basis: Tensor) -> Iterator[Tensor]:
    """Cotangents [B, G, K], one for every position and column of [B, G, K, R]."""
    _, scored, _, rank = basis.shape
    for position in range(scored):
        for column in range(rank):
            cotangent = torch.zeros_like(basis[..., 0])
            cotangent[:, position] = basis[:, position, :, column]
            yield cotangent
