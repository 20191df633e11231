"""The defence of a batch: every request as it would be alone, at both levels."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from purifier.defense.config import MaskingConfig
from purifier.defense.defend import Defended, defend, groups
from purifier.defense.fill import fill_cells
from purifier.denoise.config import GenerationConfig
from purifier.errors import PurifierError
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from tests.defense.conftest import COMBINATIONS, LEVELS, MakeInputs, picture

GENERATION = GenerationConfig(gen_length=6, block_length=3, stop=())


def settings(level: str, ranker: str = "fisher", ratio: float = 0.3) -> MaskingConfig:
    return MaskingConfig(level=level, ranker=ranker, ratio=ratio, threshold=0.0)  # type: ignore[arg-type]


def alone(mdlm: LladaV, request: Inputs, masking: MaskingConfig) -> Defended:
    (result,) = defend(mdlm, [request], GENERATION, masking)
    return result


@pytest.mark.parametrize(("level", "ranker"), COMBINATIONS)
def test_a_batch_equals_each_request_alone(
    mdlm: LladaV, requests: list[Inputs], level: str, ranker: str
) -> None:
    masking = settings(level, ranker)
    together = defend(mdlm, requests, GENERATION, masking, positions_together=400)
    assert len(together) == len(requests)
    for request, found in zip(requests, together, strict=True):
        expected = alone(mdlm, request, masking)
        torch.testing.assert_close(found.saliency, expected.saliency, rtol=1e-3, atol=1e-7)
        assert torch.equal(found.masked, expected.masked)
        torch.testing.assert_close(found.prompt.embeds, expected.prompt.embeds)
        assert len(found.planes) == len(request.images)


def test_groups_are_bounded_and_keep_the_order(requests: list[Inputs]) -> None:
    longest = max(request.length for request in requests)
    for limit in (1, longest + 6, 2 * longest + 12, 10_000):
        found = list(groups(requests, 6, limit))
        assert [request for group in found for request in group] == requests
        for group in found:
            padded = len(group) * max(request.length + 6 for request in group)
            assert len(group) == 1 or padded <= limit
    assert len(found) == 1


@pytest.mark.parametrize("level", LEVELS)
def test_the_ratio_counts_within_each_image(
    mdlm: LladaV, requests: list[Inputs], level: str
) -> None:
    request = requests[1]
    found = alone(mdlm, request, settings(level))
    if level == "token":
        sizes = [image.n_tokens for image in request.images]
    else:
        sizes = [plane.saliency.numel() for plane in found.planes]
    assert found.n_units == len(found.saliency) == sum(sizes)
    counts = [int(part.sum()) for part in found.masked.split(sizes)]
    assert counts == [int(0.3 * size) for size in sizes]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("ranker", ["fisher", "random"])
def test_extreme_ratios(mdlm: LladaV, requests: list[Inputs], level: str, ranker: str) -> None:
    plain = mdlm.embed(requests[0])
    nothing = alone(mdlm, requests[0], settings(level, ranker, 0.0))
    assert torch.equal(nothing.prompt.embeds, plain.embeds)
    assert not nothing.masked.any()
    everything = alone(mdlm, requests[0], settings(level, ranker, 1.0))
    assert everything.masked.all()
    assert torch.equal(everything.prompt.embeds[~plain.visual], plain.embeds[~plain.visual])
    if level == "token":
        visual = everything.prompt.embeds[plain.visual]
        assert torch.equal(visual, mdlm.mask_embedding.expand_as(visual))
    else:
        assert len({tuple(row) for row in everything.planes[0].masked.tolist()}) == 1


def test_token_masking_keeps_every_other_position(mdlm: LladaV, requests: list[Inputs]) -> None:
    plain = mdlm.embed(requests[1])
    found = alone(mdlm, requests[1], settings("token"))
    rows = plain.visual.nonzero()[:, 0][found.masked]
    kept = torch.ones(len(plain.embeds), dtype=torch.bool)
    kept[rows] = False
    assert torch.equal(found.prompt.embeds[kept], plain.embeds[kept])
    assert bool((found.prompt.embeds[rows] == mdlm.mask_embedding).all())


def test_patch_masking_encodes_the_filled_image(mdlm: LladaV, make_inputs: MakeInputs) -> None:
    image = picture(38, 30)
    request = make_inputs([image])
    found = alone(mdlm, request, settings("patch"))
    cells = found.masked.reshape(found.planes[0].masked.shape)
    assert torch.equal(cells.float(), found.planes[0].masked)
    expected = mdlm.embed(make_inputs([fill_cells(image, cells)]))
    torch.testing.assert_close(found.prompt.embeds, expected.embeds)
    assert np.array_equal(np.asarray(request.images[0].image), np.asarray(image))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("ranker", ["fisher", "official", "exact", "gradient"])
def test_gradients_stay_with_the_image(
    mdlm: LladaV, requests: list[Inputs], level: str, ranker: str
) -> None:
    opened = mdlm.trainable(["projector", "vision_tower", "language_model"])
    try:
        found = defend(mdlm, requests, GENERATION, settings(level, ranker))
        assert all(parameter.grad is None for parameter in opened)
        assert not any(item.prompt.embeds.requires_grad for item in found)
    finally:
        mdlm.trainable([])


@pytest.mark.parametrize("level", LEVELS)
def test_planes_and_timings(mdlm: LladaV, requests: list[Inputs], level: str) -> None:
    for item, request in zip(
        defend(mdlm, requests, GENERATION, settings(level)), requests, strict=True
    ):
        assert set(item.timings) == {"encode", "saliency", "mask"}
        assert len(item.planes) == len(request.images)
        for plane in item.planes:
            assert plane.saliency.shape == plane.masked.shape
            assert plane.saliency.dtype == plane.masked.dtype == torch.float32
            assert float(plane.saliency.min()) >= 0
            assert float(plane.masked.min()) >= 0
            assert float(plane.masked.max()) <= 1
            assert plane.masked.any()


@pytest.mark.parametrize("level", LEVELS)
def test_text_only(mdlm: LladaV, requests: list[Inputs], level: str) -> None:
    found = alone(mdlm, requests[2], settings(level))
    assert found.n_units == 0
    assert found.planes == ()
    assert torch.equal(found.prompt.embeds, mdlm.embed(requests[2]).embeds)


@pytest.mark.parametrize("level", LEVELS)
def test_the_seed_decides(mdlm: LladaV, requests: list[Inputs], level: str) -> None:
    for ranker in ("fisher", "random"):
        one = alone(mdlm, requests[0], settings(level, ranker))
        other = alone(mdlm, requests[0], replace(settings(level, ranker), seed=1))
        assert torch.equal(one.saliency, alone(mdlm, requests[0], settings(level, ranker)).saliency)
        assert not torch.equal(one.saliency, other.saliency)


def test_check_ends_the_defence(mdlm: LladaV, requests: list[Inputs]) -> None:
    class GaveUp(Exception):
        pass

    calls: list[None] = []

    def check() -> None:
        calls.append(None)
        if len(calls) == 2:
            raise GaveUp

    with pytest.raises(GaveUp):
        defend(mdlm, requests[:1], GENERATION, settings("patch"), check=check)


@pytest.mark.parametrize(
    ("level", "ranker"),
    [*product(LEVELS, ["fisher", "two-stage", "knockout"]), ("patch", "occlusion")],
)
def test_weights_that_overflow_are_reported(
    mdlm: LladaV, requests: list[Inputs], level: str, ranker: str
) -> None:
    weight = mdlm.modules.lm_head.weight
    before = weight.clone()
    weight.fill_(float("nan"))
    try:
        with pytest.raises(PurifierError, match="not finite"):
            alone(mdlm, requests[0], settings(level, ranker))
    finally:
        weight.copy_(before)


@pytest.mark.parametrize(("level", "ranker"), COMBINATIONS)
def test_bfloat16(mdlm: LladaV, requests: list[Inputs], level: str, ranker: str) -> None:
    narrow = deepcopy(mdlm)
    narrow.modules.bfloat16()
    found = alone(narrow, requests[0], settings(level, ranker))
    assert found.prompt.embeds.dtype == torch.bfloat16
    assert int(found.masked.sum()) == int(0.3 * found.n_units)


@pytest.mark.parametrize(
    ("level", "ranker"),
    [
        *product(LEVELS, ["fisher", "official", "exact", "leave-one-out"]),
        ("patch", "occlusion"),
    ],
)
def test_check_is_called_between_the_passes_of_saliency(
    mdlm: LladaV, requests: list[Inputs], level: str, ranker: str
) -> None:
    calls: list[None] = []
    masking = replace(settings(level, ranker), probes=6)
    defend(mdlm, requests[:1], GENERATION, masking, check=lambda: calls.append(None))
    # One follows the encoding, one the saliency.
    assert len(calls) > 2
