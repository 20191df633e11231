"""Choosing what is masked, and the saliency of a prompt."""

from __future__ import annotations

from math import floor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from purifier.defense.config import MaskingConfig
from purifier.defense.rankers import RANKERS
from purifier.defense.saliency import choose, top_fraction, visual_saliency
from purifier.defense.sites import mask_tokens
from purifier.denoise.config import GenerationConfig
from purifier.errors import InvalidSetting, PurifierError
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from tests.defense.conftest import TOKEN_RANKERS

SHORT = GenerationConfig(gen_length=6, block_length=3, stop=())

scores = st.lists(st.integers(-3, 3).map(float), max_size=40)
ratios = st.floats(0, 1)


@given(scores, ratios)
def test_chooses_the_floor_of_the_ratio(values: list[float], ratio: float) -> None:
    chosen = top_fraction(torch.tensor(values), ratio)
    assert int(chosen.sum()) == floor(ratio * len(values))


@given(scores, ratios)
def test_nothing_left_is_more_salient_and_ties_go_to_the_earlier(
    values: list[float], ratio: float
) -> None:
    saliency = torch.tensor(values)
    chosen = top_fraction(saliency, ratio)
    taken = [(-values[i], i) for i in chosen.nonzero()[:, 0].tolist()]
    left = [(-values[i], i) for i in (~chosen).nonzero()[:, 0].tolist()]
    assert not taken or not left or max(taken) < min(left)


@given(scores, ratios, ratios)
def test_a_larger_ratio_keeps_what_a_smaller_one_chose(
    values: list[float], one: float, other: float
) -> None:
    smaller, larger = sorted((one, other))
    saliency = torch.tensor(values)
    assert not bool((top_fraction(saliency, smaller) & ~top_fraction(saliency, larger)).any())


@given(scores)
def test_extreme_ratios(values: list[float]) -> None:
    assert not bool(top_fraction(torch.tensor(values), 0.0).any())
    assert bool(top_fraction(torch.tensor(values), 1.0).all())


@given(scores, ratios, st.floats(0, 4))
def test_the_ratio_caps_what_reaches_the_threshold(
    values: list[float], ratio: float, threshold: float
) -> None:
    saliency = torch.tensor(values)
    chosen = choose(saliency, ratio, threshold)
    # Without a threshold everything reaches it, rounding errors below 0 too.
    reaches = saliency >= (threshold or -torch.inf)
    top = top_fraction(saliency, ratio)
    assert int(chosen.sum()) == min(int(top.sum()), int(reaches.sum()))
    assert not bool((chosen & ~reaches).any())
    assert not bool((chosen & ~top).any())
    assert not bool(choose(saliency, ratio, 3.5).any())


@given(scores, ratios)
def test_without_a_threshold_the_top_fraction_is_chosen(values: list[float], ratio: float) -> None:
    """Rounding can take a divergence below 0."""
    saliency = torch.tensor(values)
    assert torch.equal(choose(saliency, ratio), top_fraction(saliency, ratio))


def test_choices_have_the_shape_of_the_scores() -> None:
    saliency = torch.tensor([[1.0, 5.0, 2.0], [0.0, 6.0, 3.0]])
    expected = torch.tensor([[False, True, False], [False, True, True]])
    assert torch.equal(choose(saliency, 0.5, 0.0), expected)
    expected[1, 2] = False
    assert torch.equal(choose(saliency, 0.5, 5.0), expected)


@pytest.mark.parametrize("ratio", [-0.1, 1.01, float("nan")])
def test_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(InvalidSetting) as error:
        top_fraction(torch.ones(3), ratio)
    assert error.value.param == "ratio"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_cannot_be_ranked(bad: float) -> None:
    with pytest.raises(PurifierError, match="not finite"):
        top_fraction(torch.tensor([1.0, bad]), 0.5)


def test_masking_changes_the_masked_rows_only(mdlm: LladaV, requests: list[Inputs]) -> None:
    prompt = mdlm.embed(requests[1])
    before = prompt.embeds.clone()
    generator = torch.Generator().manual_seed(0)
    masked = top_fraction(torch.rand(prompt.n_visual, generator=generator), 0.4)
    after = mask_tokens(prompt, masked, mdlm.mask_embedding)
    rows = prompt.visual.nonzero()[:, 0][masked]
    kept = torch.ones(len(before), dtype=torch.bool)
    kept[rows] = False
    assert torch.equal(after.embeds[kept], before[kept])
    assert torch.equal(after.embeds[rows], mdlm.mask_embedding.expand(len(rows), -1))
    assert torch.equal(prompt.embeds, before)
    assert after.spans == prompt.spans


@pytest.mark.parametrize("ranker", TOKEN_RANKERS)
def test_saliency_of_every_ranker(mdlm: LladaV, requests: list[Inputs], ranker: str) -> None:
    prompt = mdlm.embed(requests[1])
    config = MaskingConfig(level="token", ranker=ranker)  # type: ignore[arg-type]
    saliency = visual_saliency(mdlm, prompt, config, generation=SHORT)
    assert saliency.shape == (prompt.n_visual,)
    assert saliency.dtype == torch.float64
    assert bool((saliency >= -1e-12).all())
    # A region's units share its score.
    least = 6 if RANKERS[config.ranker].regional else prompt.n_visual // 2
    assert len(saliency.unique()) > least
    assert torch.equal(saliency, visual_saliency(mdlm, prompt, config, generation=SHORT))


@pytest.mark.parametrize("ranker", ["official", "fisher", "exact", "gradient", "attention"])
def test_parameters_get_no_gradients(mdlm: LladaV, requests: list[Inputs], ranker: str) -> None:
    opened = mdlm.trainable(["projector", "vision_tower", "language_model"])
    try:
        prompt = mdlm.embed(requests[0])
        config = MaskingConfig(level="token", ranker=ranker)  # type: ignore[arg-type]
        visual_saliency(mdlm, prompt, config, generation=SHORT)
        assert opened
        assert all(parameter.grad is None for parameter in opened)
    finally:
        mdlm.trainable([])


def test_works_where_gradients_are_off(mdlm: LladaV, requests: list[Inputs]) -> None:
    config = MaskingConfig(level="token", ranker="fisher")
    expected = visual_saliency(mdlm, mdlm.embed(requests[0]), config, generation=SHORT)
    with torch.no_grad():
        found = visual_saliency(mdlm, mdlm.embed(requests[0]), config, generation=SHORT)
    assert torch.equal(found, expected)
    with torch.inference_mode():
        found = visual_saliency(mdlm, mdlm.embed(requests[0]), config, generation=SHORT)
    assert torch.equal(found, expected)


def test_no_image(mdlm: LladaV, requests: list[Inputs]) -> None:
    config = MaskingConfig(level="token", ranker="fisher")
    assert visual_saliency(mdlm, mdlm.embed(requests[2]), config).shape == (0,)


@pytest.mark.parametrize("number", [0, 2])
def test_occlusion_needs_image_planes(mdlm: LladaV, requests: list[Inputs], number: int) -> None:
    config = MaskingConfig(level="patch", ranker="occlusion")
    with pytest.raises(InvalidSetting) as caught:
        visual_saliency(mdlm, mdlm.embed(requests[number]), config)
    assert caught.value.param == "ranker"


def test_a_token_the_answer_does_not_depend_on(mdlm: LladaV, requests: list[Inputs]) -> None:
    """A token that already is the mask embedding scores zero in every direction-based ranker."""
    prompt = mdlm.embed(requests[0])
    masked = torch.zeros(prompt.n_visual, dtype=torch.bool)
    masked[4] = True
    prompt = mask_tokens(prompt, masked, mdlm.mask_embedding)
    for ranker in ("official", "fisher", "exact", "leave-one-out"):
        config = MaskingConfig(level="token", ranker=ranker)
        saliency = visual_saliency(mdlm, prompt, config, generation=SHORT)
        assert abs(float(saliency[4])) < 1e-9 * float(saliency.max())
