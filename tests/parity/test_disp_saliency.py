"""Saliency and masking against the recorded runs of the published DiSP code."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from purifier.defense.first_step import Response, first_step_logits
from purifier.defense.fisher import sampled_products, sampled_scores
from purifier.defense.gradients import pull_back
from purifier.defense.probes import (
    FirstStepDistribution,
    apply_map,
    draw_probes,
    probe_map,
)
from purifier.defense.saliency import top_fraction, visual_saliency
from purifier.defense.sites import TokenSite, mask_tokens
from purifier.denoise.state import DenoisingState
from purifier.denoise.step import denoising_step
from tests.support.disp_cases import VARIANTS, DispCase, load_case, relative_error

RATIOS = (0.15, 0.3, 0.45)
CASES = sorted({name for name, _ in VARIANTS})

# A relative score gap at the cut below which float32 noise may swap two tokens.
NEAR_TIE = 3e-4


@cache
def case(name: str) -> DispCase:
    return load_case(name)


@cache
def official_products(name: str, variant: str) -> Tensor:
    """Directional products of the recorded draws, [m, T]."""
    run = case(name)
    (products,) = sampled_products(
        run.mdlm,
        TokenSite(run.mdlm, [run.prompt]).encode(differentiable=True),
        Response.of(run.mdlm, run.generation),
        run.masking(variant),
        "official",
        run.tensors[f"{variant}.draws"][:, None],
    )
    return products


@cache
def distribution(name: str, variant: str) -> FirstStepDistribution:
    run = case(name)
    with torch.no_grad():
        logits = first_step_logits(run.mdlm, [run.prompt], Response.of(run.mdlm, run.generation))
    return FirstStepDistribution.of(logits, run.masking(variant).top_k)


@pytest.mark.parametrize("name", CASES)
def test_prompt_and_first_step(name: str) -> None:
    run = case(name)
    assert len(run.prompt.embeds) == run.record["prompt_len_embeds"]
    assert run.prompt.visual.nonzero()[0, 0] == run.start
    assert run.prompt.n_visual == run.record["visual_span"]["length"]
    torch.testing.assert_close(run.mdlm.mask_embedding, run.tensors["mask_embed"])
    if "visual_embeds" in run.tensors:
        torch.testing.assert_close(
            run.prompt.embeds[run.prompt.visual], run.tensors["visual_embeds"], atol=1e-4, rtol=0
        )
    with torch.no_grad():
        response = Response.of(run.mdlm, run.generation)
        logits = first_step_logits(run.mdlm, [run.prompt], response)
    assert response.scored == run.record["scored_answer_positions"]
    torch.testing.assert_close(logits[0], run.tensors["first_step_logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_distribution_and_probes(name: str, variant: str) -> None:
    run, found = case(name), distribution(name, variant)
    assert torch.equal(found.ids[0], run.tensors[f"{variant}.topk_idx"])
    torch.testing.assert_close(found.probs[0], run.tensors[f"{variant}.p_topk"], atol=1e-5, rtol=0)
    draws = run.tensors[f"{variant}.draws"]
    probes = apply_map(probe_map(found, "fisher"), draws[:, None])[:, 0].float()
    torch.testing.assert_close(probes, run.tensors[f"{variant}.q"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_seeded_draws(name: str, variant: str) -> None:
    run = case(name)
    settings = run.masking(variant)
    draws = draw_probes(
        n_text=run.record["n_text_positions"],
        probes=settings.probes,
        scored=run.record["scored_answer_positions"],
        top_k=settings.top_k,
        seed=settings.seed,
    )
    assert torch.equal(draws, run.tensors[f"{variant}.draws"])


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_official_products_and_scores(name: str, variant: str) -> None:
    run = case(name)
    products = official_products(name, variant)
    assert relative_error(products, run.tensors[f"{variant}.dots"]) < 1e-4
    scores = sampled_scores(products)
    assert relative_error(scores, run.tensors[f"{variant}.scores"]) < 1e-4


def test_gradient_of_the_first_probe() -> None:
    run, found = case("single_tile"), distribution("single_tile", "m6k5")
    encoding = TokenSite(run.mdlm, [run.prompt]).encode(differentiable=True)
    logits = first_step_logits(
        run.mdlm, encoding.prompts, Response.of(run.mdlm, run.generation)
    ).gather(-1, found.ids)
    draws = run.tensors["m6k5.draws"][:, None]
    (probe, *_) = apply_map(probe_map(found, "official"), draws)
    (gradient,) = pull_back(logits, [probe], encoding.leaves)
    expected = run.tensors["m6k5.grad_probe0_visual_every_9th"]
    assert relative_error(gradient[0, ::9], expected) < 1e-4


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_public_saliency_draws_the_recorded_probes(name: str, variant: str) -> None:
    run = case(name)
    saliency = visual_saliency(
        run.mdlm, run.prompt, run.masking(variant), generation=run.generation
    )
    assert relative_error(saliency, run.tensors[f"{variant}.scores"]) < 1e-4


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_masked_set(name: str, variant: str, ratio: float) -> None:
    run = case(name)
    chosen = top_fraction(sampled_scores(official_products(name, variant)), ratio)
    found = set((chosen.nonzero()[:, 0] + run.start).tolist())
    expected = set(run.tensors[f"{variant}.masked_{ratio}"].tolist())
    assert len(found) == len(expected)
    gap = run.record["variants"][variant]["score_gap_at_cut_relative"][str(ratio)]
    swapped = found ^ expected
    if gap > NEAR_TIE:
        assert not swapped
    else:
        scores = run.tensors[f"{variant}.scores"]
        edge = scores.sort(descending=True).values[len(expected) - 1]
        assert all(abs(scores[i - run.start] / edge - 1) < 2 * NEAR_TIE for i in swapped)


@pytest.mark.parametrize("ratio", [0.0, *RATIOS])
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_denoising_after_masking(name: str, variant: str, ratio: float) -> None:
    """The ids before every forward pass, with the recorded tokens masked."""
    run = case(name)
    recorded = run.record["variants"][variant]["runs"].get(str(ratio))
    if recorded is None:
        pytest.skip("not recorded at this ratio")
    masked = torch.zeros(run.prompt.n_visual, dtype=torch.bool)
    if ratio:
        masked[run.tensors[f"{variant}.masked_{ratio}"] - run.start] = True
    prompt = mask_tokens(run.prompt, masked, run.mdlm.mask_embedding)
    state = DenoisingState(run.mdlm, prompt, run.generation)
    states = []
    while not state.done:
        states.append(list(state.ids))
        denoising_step(run.mdlm, [state])
    assert state.token_ids == recorded["output_ids"]
    if state.finish_reason == "length":
        # Behind a stop the published masked decoder goes on filling the block.
        assert states == recorded["state_before_each_forward"]


def test_our_span_of_several_images_is_not_displaced() -> None:
    """The published span takes in the text between two images; ours holds visual tokens only."""
    run = case("two_images")
    ours = run.mdlm.embed(run.inputs)
    assert [(span.start, span.length) for span in ours.spans] == [(14, 730), (745, 730)]
    differing = (ours.visual != run.prompt.visual).nonzero()[:, 0]
    assert differing.tolist() == [744, 1474]
    assert not bool(ours.visual[744])
