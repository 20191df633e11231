"""Products with many cotangents at once equal those one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from purifier.defense.config import MaskingConfig
from purifier.defense.defend import defend
from purifier.defense.first_step import Response, first_step_logits
from purifier.defense.fisher import sampled_products
from purifier.defense.gradients import directional_products
from purifier.defense.probes import Estimator
from purifier.defense.sites import PatchSite, Site, TokenSite
from purifier.denoise.config import GenerationConfig
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV


@pytest.mark.parametrize("level", ["token", "patch"])
@pytest.mark.parametrize("at_once", [2, 3, 7, 20])
def test_grouping_changes_nothing(
    mdlm: LladaV, requests: list[Inputs], level: str, at_once: int
) -> None:
    site: Site = PatchSite(mdlm, requests)
    if level == "token":
        site = TokenSite(mdlm, [mdlm.embed(request) for request in requests])
    encoding = site.encode(differentiable=True)
    logits = first_step_logits(mdlm, encoding.prompts, Response(3, 6))
    selected = logits[..., : MaskingConfig().top_k]
    cotangents = torch.randn(7, *selected.shape, generator=torch.Generator().manual_seed(0))
    one_by_one = directional_products(
        selected, cotangents, encoding.leaves, encoding.directions, encoding.owners
    )
    grouped = directional_products(
        selected,
        cotangents,
        encoding.leaves,
        encoding.directions,
        encoding.owners,
        at_once=at_once,
    )
    for expected, found, leaf in zip(one_by_one, grouped, encoding.leaves, strict=True):
        assert found.shape == (7, *leaf.shape[:-1])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_rows_of_a_batch_do_not_see_each_other(mdlm: LladaV, requests: list[Inputs]) -> None:
    prompts = [mdlm.embed(request) for request in (requests[0], requests[3])]
    site = TokenSite(mdlm, prompts)
    encoding = site.encode(differentiable=True)
    logits = first_step_logits(mdlm, encoding.prompts, Response(3, 6))[..., :5]
    cotangent = torch.zeros_like(logits)
    cotangent[0] = 1.0
    first, second = directional_products(
        logits, [cotangent], encoding.leaves, encoding.directions, encoding.owners
    )
    assert float(first.abs().max()) > 0
    assert float(second.abs().max()) == 0


@pytest.mark.parametrize("estimator", ["fisher", "official"])
def test_single_precision_is_a_setting(
    mdlm: LladaV, requests: list[Inputs], estimator: Estimator
) -> None:
    def products(float64: bool) -> list[Tensor]:
        encoding = TokenSite(mdlm, [mdlm.embed(r) for r in requests]).encode(differentiable=True)
        config = MaskingConfig(level="token", ranker="fisher", probes=3, float64=float64)
        return sampled_products(mdlm, encoding, Response(3, 6), config, estimator)

    for single, double in zip(products(False), products(True), strict=True):
        assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
        assert not torch.equal(single.double(), double)
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("level", ["token", "patch"])
@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("scale", [1e-30, 1e-45])
def test_tiny_cotangents_lose_no_precision(
    mdlm: LladaV, requests: list[Inputs], level: str, at_once: int, scale: float
) -> None:
    """A near-certain answer has such cotangents; float32 would round their gradients to 0."""
    site: Site = PatchSite(mdlm, requests)
    if level == "token":
        site = TokenSite(mdlm, [mdlm.embed(request) for request in requests])
    encoding = site.encode(differentiable=True)
    logits = first_step_logits(mdlm, encoding.prompts, Response(3, 6))[..., :5]
    draws = torch.randn(
        3, *logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    # The rows of a batch differ in size too, and one is zero.
    draws[:, 1] *= 1e-6
    draws[0, 0] = 0.0

    def products(cotangents: Tensor) -> list[Tensor]:
        return directional_products(
            logits,
            cotangents,
            encoding.leaves,
            encoding.directions,
            encoding.owners,
            at_once=at_once,
        )

    unit, tiny = products(draws), products(scale * draws)
    for expected, found in zip(unit, tiny, strict=True):
        assert float(expected.abs().max()) > 0
        torch.testing.assert_close(found / scale, expected, rtol=1e-4, atol=1e-9)
    assert not bool(unit[0][0].any())


@pytest.mark.parametrize(("level", "expected"), [("token", {False}), ("patch", {True, False})])
def test_the_tower_has_a_graph_at_level_patch_alone(
    mdlm: LladaV, requests: list[Inputs], level: str, expected: set[bool]
) -> None:
    graphs: set[bool] = set()
    opened = mdlm.trainable(["vision_tower"])
    handle = mdlm.modules.vision_tower.encoder.register_forward_hook(
        lambda *_: graphs.add(torch.is_grad_enabled())
    )
    try:
        config = MaskingConfig(level=level, ranker="fisher", probes=2)  # type: ignore[arg-type]
        defend(mdlm, requests, GenerationConfig(gen_length=6), config)
    finally:
        handle.remove()
        mdlm.trainable([])
    assert graphs == expected
    assert all(parameter.grad is None for parameter in opened)
