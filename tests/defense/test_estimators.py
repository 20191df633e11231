"""Sampled scores converge to their own exact expectation, at both levels.

A score of m probes is its expectation times a chi-square variable with m degrees of freedom
divided by m, so its relative deviation is sqrt(2 / m). Scores share their probes, so the
bounds are on each score, not on a mean over many.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from purifier.defense.config import MaskingConfig
from purifier.defense.first_step import Response, first_step_logits
from purifier.defense.fisher import (
    exact_products,
    exact_scores,
    sampled_products,
    sampled_scores,
)
from purifier.defense.leave_one_out import leave_one_out_kl
from purifier.defense.probes import Estimator
from purifier.defense.sites import Encoding, PatchSite, Site, TokenSite
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV

RESPONSE = Response(scored=3, length=6)
DEVIATIONS = 5.0


def make_site(mdlm: LladaV, level: str, request: Inputs) -> Site:
    if level == "patch":
        return PatchSite(mdlm, [request])
    return TokenSite(mdlm, [mdlm.embed(request)])


def exact(mdlm: LladaV, site: Site, config: MaskingConfig, estimator: Estimator) -> Tensor:
    encoding = site.encode(differentiable=True)
    products = exact_products(mdlm, encoding, RESPONSE, config, estimator)
    return torch.cat([exact_scores(product).flatten() for product in products])


def sampled(mdlm: LladaV, site: Site, config: MaskingConfig, estimator: Estimator) -> Tensor:
    encoding = site.encode(differentiable=True)
    products = sampled_products(mdlm, encoding, RESPONSE, config, estimator)
    return torch.cat([sampled_scores(product).flatten() for product in products])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("level", ["token", "patch"])
@pytest.mark.parametrize("estimator", ["fisher", "official"])
def test_sampled_scores_converge(
    mdlm: LladaV, requests: list[Inputs], estimator: Estimator, level: str, temperature: float
) -> None:
    site = make_site(mdlm, level, requests[0])
    target = exact(mdlm, site, MaskingConfig(temperature=temperature), estimator)
    scored = target > 0
    previous = float("inf")
    for probes in (6, 60, 600):
        config = MaskingConfig(probes=probes, temperature=temperature)
        scores = sampled(mdlm, site, config, estimator)
        assert bool((scores[~scored] == 0).all())
        error = (scores[scored] / target[scored] - 1).abs()
        # The chi-square distribution is skewed where there are few probes.
        bound = DEVIATIONS * (2 / probes) ** 0.5 + DEVIATIONS**2 / probes
        assert float(error.max()) < bound
        assert float(error.mean()) < previous
        previous = float(error.mean())


def test_the_estimators_are_not_the_same(mdlm: LladaV, requests: list[Inputs]) -> None:
    """600 probes tell the two expectations apart, so neither passes for the other."""
    site = make_site(mdlm, "token", requests[0])
    official = exact(mdlm, site, MaskingConfig(), "official")
    fisher = exact(mdlm, site, MaskingConfig(), "fisher")
    ratio = official / fisher - 1
    assert float(ratio.abs().max()) > DEVIATIONS * (2 / 600) ** 0.5


def test_chi_square_spread(mdlm: LladaV, requests: list[Inputs]) -> None:
    """Over many seeds a score's mean and variance are those of chi-square over m."""
    site = make_site(mdlm, "token", requests[0])
    target = exact(mdlm, site, MaskingConfig(), "fisher")
    token = int(target.argmax())
    seeds, probes = 150, 6
    ratios = torch.stack(
        [
            sampled(mdlm, site, MaskingConfig(probes=probes, seed=seed), "fisher")[token]
            / target[token]
            for seed in range(seeds)
        ]
    )
    deviation = (2 / probes) ** 0.5
    assert abs(float(ratios.mean()) - 1) < 4 * deviation / seeds**0.5
    assert float(ratios.std()) == pytest.approx(deviation, rel=0.3)


def test_exact_form_is_the_explicit_jacobian(mdlm: LladaV, requests: list[Inputs]) -> None:
    config = MaskingConfig(temperature=2.0)
    site = make_site(mdlm, "token", requests[0])
    encoding = site.encode(differentiable=True)
    (leaf,), (direction,) = encoding.leaves, encoding.directions
    logits = first_step_logits(mdlm, encoding.prompts, RESPONSE)[0]
    values, _ = logits.topk(config.top_k, dim=-1)
    p = torch.softmax(values.detach().double() / config.temperature, -1)
    expected = torch.zeros(len(leaf), dtype=torch.float64)
    for position in range(RESPONSE.scored):
        rows = [
            torch.autograd.grad(value, leaf, retain_graph=True)[0].double()
            for value in values[position]
        ]
        d = torch.stack([(row * direction).sum(-1) for row in rows])
        mean = p[position] @ d
        expected += 0.5 * (p[position] @ d.square() - mean.square())
    torch.testing.assert_close(exact(mdlm, site, config, "fisher"), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("level", ["token", "patch"])
def test_form_is_the_second_order_of_the_divergence(
    mdlm: LladaV, requests: list[Inputs], level: str
) -> None:
    """KL(p || p at e + h direction) / h^2 tends to the form as h shrinks."""
    config = MaskingConfig(top_k=90)
    mdlm.modules.double()
    try:
        site = make_site(mdlm, level, requests[0])
        encoding = site.encode(differentiable=True)
        products = exact_products(mdlm, encoding, RESPONSE, config)
        (form,) = [exact_scores(product) for product in products]
        with torch.no_grad():
            for piece in torch.cartesian_prod(*[torch.arange(n) for n in form.shape]).reshape(
                -1, form.dim()
            )[:: max(1, form.numel() // 5)]:
                index = tuple(piece.tolist())
                estimates = small_step_divergence(mdlm, site, encoding, index, 0.02)
                assert float(estimates) == pytest.approx(float(form[index]), rel=0.1)
    finally:
        mdlm.modules.float()


def small_step_divergence(
    mdlm: LladaV, site: Site, encoding: Encoding, index: tuple[int, ...], step: float
) -> Tensor:
    """Mean of the divergence over a step and its opposite, divided by the step squared."""
    logits = [first_step_logits(mdlm, encoding.prompts, RESPONSE)]
    for h in (step, -step):
        leaf = encoding.leaves[0].detach().clone()
        leaf[index] += h * encoding.directions[0][index].to(leaf)
        if isinstance(site, PatchSite):
            visual = mdlm.visual_embeddings(site.images[0], leaf)
            prompt = mdlm.assemble(site.requests[0], [visual])
        else:
            prompt = encoding.prompts[0]
            start = prompt.spans[0].start
            embeds = prompt.embeds.detach().clone()
            embeds[start : start + len(leaf)] = leaf
            prompt = type(prompt)(embeds, prompt.visual, prompt.spans)
        logits.append(first_step_logits(mdlm, [prompt], RESPONSE))
    base, *moved = [torch.log_softmax(value.double(), -1) for value in logits]
    kl = [(base.exp() * (base - other)).sum() for other in moved]
    return torch.stack(kl).mean() / step**2


def test_leave_one_out_is_the_divergence_of_a_masked_token(
    mdlm: LladaV, requests: list[Inputs]
) -> None:
    request = requests[0]
    prompt = mdlm.embed(request)
    site = TokenSite(mdlm, [prompt])
    (scores,) = leave_one_out_kl(site, site.encode(differentiable=False), RESPONSE, rows=5)
    embeds = prompt.embeds.clone()
    embeds[prompt.spans[0].start + 3] = mdlm.mask_embedding
    without = type(prompt)(embeds, prompt.visual, prompt.spans)
    one, other = (
        torch.log_softmax(first_step_logits(mdlm, [p], RESPONSE).double(), -1)
        for p in (prompt, without)
    )
    expected = (one.exp() * (one - other)).sum()
    torch.testing.assert_close(scores[3], expected, rtol=1e-4, atol=1e-9)
