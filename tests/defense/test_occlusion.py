"""Occlusion by windows: what they cover, and their scores computed one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from purifier.defense import leave_one_out
from purifier.defense.config import Level, MaskingConfig, RankerName
from purifier.defense.defend import defend
from purifier.defense.fill import fill_cells
from purifier.defense.first_step import Response, first_step_logits
from purifier.defense.leave_one_out import occlusion
from purifier.defense.saliency import choose, site_scores, unit_scores
from purifier.defense.sites import PatchSite
from purifier.defense.windows import WINDOWS_PER_SIDE, covered_cells, windows
from purifier.denoise.config import GenerationConfig
from purifier.mdlm.base import Inputs, Mdlm, Prompt
from purifier.mdlm.llada_v import LladaV
from tests.defense.conftest import LEVELS

RESPONSE = Response(scored=3, length=6)
GENERATION = GenerationConfig(gen_length=6, block_length=3, stop=())
OCCLUSION = MaskingConfig(level="patch", ranker="occlusion", ratio=0.3, threshold=0.0)

sides = st.integers(1, 70)


@given(sides, sides)
def test_windows_hold_every_region_up_to_the_covered_size(rows: int, columns: int) -> None:
    found = windows((rows, columns))
    assert found.dtype == torch.bool
    assert len(found) <= WINDOWS_PER_SIDE**2
    assert bool(found.any(0).all())
    height, width = min(rows, covered_cells(rows)), min(columns, covered_cells(columns))
    # A square of cells lies inside a window where no cell of it lies outside.
    outside = (~found).float()[:, None]
    inside = torch.nn.functional.max_pool2d(outside, (height, width), stride=1) == 0
    assert inside.shape[2:] == (rows - height + 1, columns - width + 1)
    assert bool(inside.any(0).all())


@given(sides, sides)
def test_windows_are_full_rectangles_smaller_than_the_plane(rows: int, columns: int) -> None:
    for window in windows((rows, columns)):
        spans = window.any(1), window.any(0)
        for span in spans:
            (places,) = span.nonzero(as_tuple=True)
            assert len(places) == places[-1] - places[0] + 1
        assert torch.equal(window, spans[0][:, None] & spans[1][None, :])
        assert max(rows, columns) < 3 or not bool(window.all())


@pytest.mark.parametrize(("rows", "columns"), [(10, 10), (27, 27), (27, 54), (41, 54), (54, 54)])
def test_the_default_ratio_masks_a_window_whole(rows: int, columns: int) -> None:
    """Planes of the demo and of SigLIP-384 with one tile and several."""
    for window in windows((rows, columns)):
        assert torch.equal(choose(window.double() * 9.0, MaskingConfig().ratio, 4.0), window)
    # A square of an eighth of the side lies in one of them wherever it is.
    assert covered_cells(rows) / rows > 0.12


def by_hand(mdlm: LladaV, request: Inputs) -> list[Tensor]:
    """Every window filled in the picture, the whole request prepared and answered anew."""
    site = PatchSite(mdlm, [request])
    (before,) = log_probabilities(mdlm, request)
    result = []
    for number, (rows, columns) in enumerate(site.shapes):
        best = torch.zeros(rows, columns, dtype=torch.float64)
        for window in windows((rows, columns)):
            images = list(request.images)
            images[number] = mdlm.prepare_image(
                fill_cells(images[number].image, window), n_images=len(images)
            )
            (after,) = log_probabilities(mdlm, replace(request, images=tuple(images)))
            score = (before.exp() * (before - after)).sum(-1).max()
            best[window] = torch.maximum(best[window], score)
        result.append(best)
    return result


def log_probabilities(mdlm: LladaV, request: Inputs) -> Tensor:
    with torch.no_grad():
        logits = first_step_logits(mdlm, [mdlm.embed(request)], RESPONSE)
    return torch.log_softmax(logits.double(), dim=-1)


def scored(mdlm: LladaV, requests: Sequence[Inputs], rows: int = 32) -> list[Tensor]:
    site = PatchSite(mdlm, requests)
    return occlusion(site, site.encode(differentiable=False), RESPONSE, rows=rows)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_equals_every_window_computed_by_itself(
    mdlm: LladaV, requests: list[Inputs], number: int
) -> None:
    found = scored(mdlm, [requests[number]])
    expected = by_hand(mdlm, requests[number])
    assert len(found) == len(requests[number].images)
    for one, other in zip(found, expected, strict=True):
        assert float(other.max()) > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rows", [1, 7])
def test_the_number_of_rows_changes_nothing(
    mdlm: LladaV, requests: list[Inputs], rows: int
) -> None:
    for one, other in zip(scored(mdlm, requests, rows), scored(mdlm, requests, 1000), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_large_predictions_are_taken_fewer_at_once(
    mdlm: LladaV, requests: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scored(mdlm, [requests[0]])
    sizes: list[int] = []
    plain = first_step_logits

    def measured(mdlm: Mdlm, prompts: Sequence[Prompt], response: Response) -> Tensor:
        logits = plain(mdlm, prompts, response)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(leave_one_out, "first_step_logits", measured)
    scored(mdlm, [requests[0]])
    one, *unbounded = sizes
    sizes.clear()
    monkeypatch.setattr(leave_one_out, "VALUES_AT_ONCE", 2 * one)
    bounded = scored(mdlm, [requests[0]])
    assert max(unbounded) > 2 * one >= max(sizes)
    for score, other in zip(bounded, expected, strict=True):
        torch.testing.assert_close(score, other, rtol=1e-4, atol=1e-7)


def test_scores_are_not_pooled(mdlm: LladaV, requests: list[Inputs]) -> None:
    site = PatchSite(mdlm, [requests[0]])
    (raw,) = scored(mdlm, [requests[0]])
    for pooling in (1, 3, 9):
        (score,) = site_scores(site, RESPONSE, replace(OCCLUSION, pooling=pooling))
        assert torch.equal(score, raw)
    pooled, plain = (
        unit_scores(
            site,
            site.encode(differentiable=True),
            RESPONSE,
            MaskingConfig(level="patch", ranker="gradient", pooling=pooling),
        )[0]
        for pooling in (3, 1)
    )
    assert not torch.equal(pooled, plain)


def test_masks_whole_windows_and_only_those_that_reach_the_threshold(
    mdlm: LladaV, requests: list[Inputs]
) -> None:
    (score,) = scored(mdlm, [requests[0]])
    threshold = float(score.max())
    (found,) = defend(
        mdlm, requests[:1], GENERATION, replace(OCCLUSION, ratio=1.0, threshold=threshold)
    )
    reached = (score >= threshold).flatten()
    assert 0 < int(reached.sum()) < score.numel()
    assert torch.equal(found.masked, reached)
    (half,) = defend(
        mdlm, requests[:1], GENERATION, replace(OCCLUSION, ratio=0.05, threshold=threshold)
    )
    assert int(half.masked.sum()) == min(int(0.05 * score.numel()), int(reached.sum()))


@pytest.mark.parametrize(
    ("level", "ranker"), [("patch", "occlusion"), *((level, "fisher") for level in LEVELS)]
)
def test_a_threshold_above_every_score_leaves_the_prompt_alone(
    mdlm: LladaV, requests: list[Inputs], level: Level, ranker: RankerName
) -> None:
    masking = replace(OCCLUSION, level=level, ranker=ranker, ratio=1.0, threshold=1000.0)
    for found, request in zip(defend(mdlm, requests, GENERATION, masking), requests, strict=True):
        plain = mdlm.embed(request)
        assert not found.masked.any()
        assert all(not plane.masked.any() for plane in found.planes)
        assert torch.equal(found.prompt.embeds, plain.embeds)
        assert torch.equal(found.prompt.visual, plain.visual)
        assert found.prompt.spans == plain.spans


@given(
    st.lists(st.integers(1, 60), max_size=20),
    st.integers(1, 6),
    st.integers(1, 300),
)
def test_passes_are_bounded_and_keep_the_order(
    mdlm: LladaV, lengths: list[int], rows: int, positions: int
) -> None:
    found = list(
        leave_one_out.bounded(
            lengths,
            lambda length: length,
            mdlm=mdlm,
            response=RESPONSE,
            rows=rows,
            positions=positions,
        )
    )
    assert [length for group in found for length in group] == lengths
    for group in found:
        padded = len(group) * (max(group) + RESPONSE.length)
        assert 1 <= len(group) <= rows
        assert len(group) == 1 or padded <= positions
