"""Exact forms, the constant probe and leave-one-out KL against recorded float64 values."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from purifier.defense.first_step import Response
from purifier.defense.fisher import (
    exact_products,
    exact_scores,
    sampled_products,
    sampled_scores,
)
from purifier.defense.leave_one_out import leave_one_out_kl
from purifier.defense.probes import Estimator
from purifier.defense.saliency import visual_saliency
from purifier.defense.sites import TokenSite
from tests.support.disp_cases import DispCase, load_case, relative_error
from tests.support.golden import golden_folder


@cache
def case() -> DispCase:
    return load_case("single_tile")


@cache
def exact() -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(golden_folder("disp") / "exact_single_tile.safetensors")
    return tensors


@pytest.mark.parametrize("variant", ["m6k5", "m3k10"])
def test_constant_probe(variant: str) -> None:
    run = case()
    (products,) = sampled_products(
        run.mdlm,
        TokenSite(run.mdlm, [run.prompt]).encode(differentiable=True),
        Response.of(run.mdlm, run.generation),
        run.masking(variant),
        "fisher",
        run.tensors[f"{variant}.draws"][:, None],
    )
    expected = exact()[f"constant_probe_scores_{variant[:2]}_{variant[2:]}"]
    assert relative_error(sampled_scores(products), expected) < 1e-4


@pytest.mark.parametrize(
    ("variant", "estimator", "name"),
    [
        ("m6k5", "fisher", "quadratic_topk5"),
        ("m6k5", "official", "expected_official_topk5"),
        ("m3k10", "fisher", "quadratic_topk10"),
        ("m3k10", "official", "expected_official_topk10"),
    ],
)
def test_exact_form(variant: str, estimator: Estimator, name: str) -> None:
    run = case()
    (products,) = exact_products(
        run.mdlm,
        TokenSite(run.mdlm, [run.prompt]).encode(differentiable=True),
        Response.of(run.mdlm, run.generation),
        run.masking(variant),
        estimator,
    )
    assert relative_error(exact_scores(products), exact()[name]) < 1e-4


def test_exact_ranker_is_the_exact_form() -> None:
    run = case()
    saliency = visual_saliency(
        run.mdlm, run.prompt, run.masking("m6k5", ranker="exact"), generation=run.generation
    )
    assert relative_error(saliency, exact()["quadratic_topk5"]) < 1e-4


def test_many_official_probes() -> None:
    run = case()
    saliency = visual_saliency(
        run.mdlm, run.prompt, run.masking("m6k5", probes=512), generation=run.generation
    )
    assert relative_error(saliency, run.tensors["m512k5.scores"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("top_k", "name"), [(5, "loo_kl_topk5"), (None, "loo_kl_full_vocabulary")])
def test_leave_one_out(top_k: int | None, name: str) -> None:
    run = case()
    site = TokenSite(run.mdlm, [run.prompt])
    (scores,) = leave_one_out_kl(
        site,
        site.encode(differentiable=False),
        Response.of(run.mdlm, run.generation),
        top_k=top_k,
    )
    assert relative_error(scores, exact()[name]) < 1e-3
    ranks = torch.stack([scores, exact()[name]]).argsort(-1).argsort(-1).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.9999
